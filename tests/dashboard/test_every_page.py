"""Every page of a tenant that has some of everything, without JavaScript."""

import html
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from registry.db import SessionFactory
from registry.settings import Settings
from registry.storage import LocalStore
from tests.dashboard.conftest import form_token
from tests.dashboard.world import World, furnish
from tests.factories import Holder


@pytest.fixture
def world(
    factory: SessionFactory, settings: Settings, store: LocalStore, holder: Holder, tmp_path: Path
) -> World:
    return furnish(factory, settings, store, holder, tmp_path)


def test_every_page_shows_itself_and_every_link_leads_somewhere(
    browser: TestClient, world: World
) -> None:
    seen: set[str] = set()
    for path in world.paths.values():
        response = browser.get(path)
        assert response.status_code == 200, path
        links = re.findall(r'(?:href|src|action)="(/[^"#]*)', response.text)
        seen |= {html.unescape(link) for link in links}
    changing = re.compile(r"/(cancel|pause|resume|retry|delete|rotate|revoke|remove|redeliver)$")
    for link in sorted(seen):
        if changing.search(link) or link in ("/sign-out",) or "archive.tar" in link:
            continue
        status = browser.get(link, headers={"Accept": "text/html"}).status_code
        assert status in (200, 405, 307, 422) or "/admin/webhooks/wh_" in link, f"{link}: {status}"


def test_jobs_are_compared_with_differences_and_their_significance(
    browser: TestClient, world: World
) -> None:
    page = browser.get(f"/compare?job={world.finished}&job={world.other}").text
    assert "method" in page
    assert "adapt_pruner" in page
    assert re.search(r"p = 0\.\d{3}", page)
    assert "mcnemar over 400 rows" in page


def test_the_frontier_links_its_points_and_marks_the_best(
    browser: TestClient, world: World
) -> None:
    page = browser.get("/frontier").text
    plane = page[page.index('data-testid="by-size"') : page.index('data-testid="by-speed"')]
    assert plane.count('class="best"') >= 6
    assert plane.count('class="beaten"') >= 3
    assert 'class="base"' in plane
    assert f'href="/jobs/{world.finished}#row-' in plane


def test_the_timeline_shows_the_crash_and_the_retry(browser: TestClient, world: World) -> None:
    page = browser.get(f"/jobs/{world.running}/timeline").text
    assert page.count('<line class="crash"') == 1
    assert "killed by SIGKILL" in page
    assert "exit -9" in page
    assert "job.retrying" in page


def test_a_log_is_searched_and_followed(
    browser: TestClient, world: World, settings: Settings
) -> None:
    page = browser.get(f"/jobs/{world.running}/logs?q=a line of").text
    assert "a line of the log" in page
    assert "step 7 loss" not in page
    length = re.search(r'data-log="(\d+)"', page)
    assert length
    more = f"/jobs/{world.running}/logs/more?attempt=2&after={length[1]}"
    assert browser.get(more).json()["text"] == ""
    (log,) = settings.data_dir.glob(f"logs/{world.running}/*")
    with log.open("a") as file:
        file.write("added\nnot yet whole")
    found = browser.get(more).json()
    assert found["text"] == "added\n"
    assert found["length"] == int(length[1]) + len("added\n")


def test_the_request_can_be_copied_in_three_forms(browser: TestClient, world: World) -> None:
    page = browser.get(f"/jobs/{world.finished}/recipe").text
    for text in ("curl http://", "from espalier import Client", "export ESPALIER_URL="):
        assert text in html.unescape(page)


def test_models_are_registered_and_their_aliases_moved(browser: TestClient, world: World) -> None:
    token = form_token(browser.get("/models").text)
    new = {"form_token": token, "name": "fresh", "checkpoint": world.checkpoint}
    assert browser.post("/models", data=new).headers["location"] == "/models/fresh"
    alias = {"form_token": token, "alias": "best", "version": "1"}
    browser.post("/models/fresh/aliases", data=alias)
    page = browser.get("/models/fresh").text
    assert "Version 1" in page
    assert '<span class="tag">best</span>' in page
    again = browser.post("/models/fresh/aliases", data=alias, headers={"Accept": "text/html"})
    assert again.status_code == 412
    remove = {"form_token": token, "revision": "1"}
    browser.post("/models/fresh/aliases/best/remove", data=remove)
    assert '<span class="tag">best</span>' not in browser.get("/models/fresh").text


def test_a_key_is_made_shown_once_and_revoked(browser: TestClient, client: TestClient) -> None:
    token = form_token(browser.get("/admin").text)
    made = browser.post("/admin/keys", data={"form_token": token, "scopes": ["jobs:read"]})
    secret = re.search(r'id="fresh-key">(pk_\w+)<', made.text)
    assert secret
    assert secret[1] not in browser.get("/admin").text
    key = next(
        key["id"] for key in client.get("/v1/api-keys").json()["data"] if key["prefix"] in secret[1]
    )
    assert browser.post(f"/admin/keys/{key}/revoke", data={"form_token": token}).status_code == 303
    bearer = {"Authorization": f"Bearer {secret[1]}"}
    assert client.get("/v1/jobs", headers=bearer).status_code == 401


def test_webhooks_are_added_tried_and_switched_off(browser: TestClient, world: World) -> None:
    token = form_token(browser.get("/admin/webhooks").text)
    data = {"form_token": token, "url": "https://example.com/new", "events": ["job.failed"]}
    assert "whsec_" in browser.post("/admin/webhooks", data=data).text
    for action in ("test", "disable"):
        path = f"/admin/webhooks/{world.webhook}/{action}"
        assert browser.post(path, data={"form_token": token}).status_code == 303
    assert "webhook.test" in browser.get(f"/admin/webhooks/{world.webhook}").text
    assert "Switch on" in browser.get("/admin/webhooks").text


def test_the_administration_is_for_administrators(
    anonymous: TestClient, client: TestClient
) -> None:
    made = client.post("/v1/api-keys", json={"scopes": ["jobs:read"]}).json()
    token = form_token(anonymous.get("/sign-in").text)
    anonymous.post("/sign-in", data={"api_key": made["secret"], "form_token": token})
    assert 'href="/admin"' not in anonymous.get("/").text
    for part in ("", "/webhooks", "/workers", "/usage", "/audit"):
        assert anonymous.get(f"/admin{part}").status_code == 403
    assert anonymous.get("/models").status_code == 403
