"""Looking at a page as a browser shows it: what it complains of, and what axe finds."""

from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page

SERIOUS = ("serious", "critical")


def listen_for_complaints(page: Page, complaints: list[str]) -> None:
    """Add to a list what console, scripts, dialogs and policy complain of, and foreign requests."""

    def is_foreign(url: str) -> bool:
        return urlsplit(url).hostname not in ("127.0.0.1", "localhost", None)

    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else 0)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: complaints.append(r.url) if is_foreign(r.url) else None)
    page.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error('CSP', e.blockedURI))"
    )


def findings(page: Page, axe: str) -> list[str]:
    """What is seriously wrong with the page as it stands; `axe` is the rules' script."""
    page.evaluate(axe)
    result: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{found['id']} ({found['help']}): {found['nodes'][0]['target']} of {len(found['nodes'])}"
        for found in result["violations"]
        if found["impact"] in SERIOUS
    ]
