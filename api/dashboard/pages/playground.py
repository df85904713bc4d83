"""The same prompt to a pruned model and its parent, answered by a worker."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.dashboard.pages.job import page_of
from api.dashboard.viewing import JobsActor, Viewer, go, read_fields, show
from api.deps import Principal, ReadSession, WriteSession
from registry import checkpoints, jobs, playground
from registry.db import database_now
from registry.tables import PlaygroundRun

router = APIRouter(prefix="/jobs/{job_id}/playground")

SHOWN_RUNS = 10
LENGTHS = (32, 64, playground.MAX_TOKENS)


class Prompt(BaseModel):
    """What the form may ask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(pattern=r"^ckpt_[0-9a-f]{32}$")
    prompt: str = Field(min_length=1, max_length=playground.MAX_PROMPT)
    max_tokens: int = Field(gt=0, le=playground.MAX_TOKENS)


@dataclass(frozen=True)
class Played:
    """A prompt, and whether its time is over without an answer."""

    row: PlaygroundRun
    overdue: bool

    @property
    def waiting(self) -> bool:
        return self.row.status in ("queued", "running") and not self.overdue


@router.get("")
def playground_page(
    request: Request,
    job_id: str,
    who: Viewer,
    session: ReadSession,
    checkpoint: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """The form, and the last answers."""
    return page_of(
        request, session, who, job_id, "playground", _context(session, who, job_id, checkpoint)
    )


@router.get("/answers")
def answers_live(request: Request, job_id: str, who: Viewer, session: ReadSession) -> Response:
    """The part of that page that is refreshed while an answer is waited for."""
    jobs.get(session, who.tenant_id, job_id)
    return show(request, "_answers.html", _context(session, who, job_id, ""))


def _context(session: Session, who: Principal, job_id: str, chosen: str) -> dict[str, Any]:
    now = database_now(session)
    rows = playground.list_for_job(session, who.tenant_id, job_id, limit=SHOWN_RUNS)
    played = [Played(row, playground.is_overdue(row, now)) for row in rows]
    kept = [row for row in checkpoints.list_for_job(session, job_id) if row.status != "deleted"]
    return {
        "job_id": job_id,
        "checkpoints": list(reversed(kept)),
        "increments": {row.id: row.increment for row in checkpoints.list_for_job(session, job_id)},
        "chosen": chosen,
        "lengths": LENGTHS,
        "max_prompt": playground.MAX_PROMPT,
        "played": played,
        "waiting": any(one.waiting for one in played),
        "timed_out": playground.TIMED_OUT,
    }


@router.post("")
def play(
    job_id: str,
    who: JobsActor,
    session: WriteSession,
    checkpoint: Annotated[str, Form(max_length=64)] = "",
    prompt: Annotated[str, Form(max_length=20_000)] = "",
    max_tokens: Annotated[int, Form()] = LENGTHS[1],
) -> Response:
    """Queue a prompt for a worker."""
    jobs.get(session, who.tenant_id, job_id)
    wanted = read_fields(
        Prompt, {"checkpoint": checkpoint, "prompt": prompt, "max_tokens": max_tokens}
    )
    playground.ask(
        session,
        who.tenant_id,
        wanted.checkpoint,
        prompt=wanted.prompt,
        max_tokens=wanted.max_tokens,
    )
    return go(f"/jobs/{job_id}/playground")
