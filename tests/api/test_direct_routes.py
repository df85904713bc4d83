"""Routes that read their request by themselves are asked, refused and described as all others."""

import pytest
from fastapi import APIRouter, Request, Response
from fastapi.testclient import TestClient

from api.deps import JobsReader
from api.direct_routes import DirectRoute
from tests.factories import Holder


def test_a_function_that_takes_more_than_it_would_be_given_is_refused() -> None:
    router = APIRouter(route_class=DirectRoute)

    async def read(request: Request, who: JobsReader, wait: float = 0) -> Response:
        raise NotImplementedError(request, who, wait)

    with pytest.raises(TypeError, match="read must take `request` and `who`, and nothing else"):
        router.get("/")(read)


@pytest.mark.parametrize(
    ("query", "param", "said"),
    [
        ("wait=61", "wait", "less than or equal to 60"),
        ("wait=soon", "wait", "valid number"),
        ("if_version=-1", "if_version", "greater than or equal to 0"),
        ("wait=1&wait=2", "wait", "only once"),
        ("waiting=1", "waiting", "there are: if_version, wait"),
    ],
)
def test_what_is_wrong_in_a_query_is_named(
    client: TestClient, query: str, param: str, said: str
) -> None:
    problem = client.get(f"/v1/jobs/job_{'0' * 32}?{query}")
    assert problem.status_code == 422
    assert problem.json()["param"] == param
    assert said in problem.json()["detail"]


def test_a_header_that_breaks_its_pattern_is_named(client: TestClient) -> None:
    problem = client.post("/v1/jobs", json={}, headers={"Idempotency-Key": "a b"})
    assert problem.status_code == 422
    assert problem.json()["param"] == "idempotency-key"


def test_parameters_are_described_as_fastapi_describes_them(client: TestClient) -> None:
    operations = client.get("/openapi.json").json()["paths"]
    described = {
        (one["in"], one["name"], one["required"], one["schema"]["type"])
        for one in operations["/v1/jobs/{job_id}"]["get"]["parameters"]
    }
    assert described == {
        ("path", "job_id", True, "string"),
        ("query", "wait", False, "number"),
        ("query", "if_version", False, "integer"),
        ("header", "if-none-match", False, "string"),
    }


def test_who_may_not_is_refused_before_the_query_is_read(
    client: TestClient, holder: Holder
) -> None:
    asked = f"/v1/jobs/job_{'0' * 32}?wait=61"
    wrong = holder.secret[:-1] + ("0" if holder.secret[-1] != "0" else "1")
    refused = client.get(asked, headers={"Authorization": f"Bearer {wrong}"})
    assert refused.status_code == 401
