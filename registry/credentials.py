"""Secrets of tenants for places outside, such as gated models on a hub: sealed, never shown again.

Each is encrypted with AES-GCM under a key derived from the installation's secret, and bound to its
row, so that neither a copy of the database nor a row moved to another tenant opens it.
"""

import base64
import hashlib
import hmac
import secrets
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import select
from sqlalchemy.orm import Session

from pruning.recipe import Recipe
from registry.db import database_now
from registry.errors import CredentialNotUsable, NotFound
from registry.ids import new_id
from registry.tables import Credential

Kind = Literal["hf_token"]
_NONCE_BYTES = 12


def create(
    session: Session, *, tenant_id: str, name: str | None, kind: Kind, secret: str, master: bytes
) -> Credential:
    """A stored credential; from here on only `reveal` has its secret."""
    row = Credential(
        id=new_id("cred"),
        tenant_id=tenant_id,
        name=name,
        kind=kind,
        created_at=database_now(session),
    )
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = _cipher(master).encrypt(nonce, secret.encode(), _bound_to(row))
    row.sealed = base64.b64encode(nonce + sealed).decode()
    session.add(row)
    session.flush()
    return row


def get(session: Session, tenant_id: str, credential_id: str) -> Credential:
    """The tenant's credential.

    Raises:
        NotFound: there is none, it was deleted, or it is another tenant's.
    """
    query = select(Credential).where(
        Credential.id == credential_id,
        Credential.tenant_id == tenant_id,
        Credential.deleted_at.is_(None),
    )
    row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFound("credential", credential_id)
    return row


def list_all(session: Session, tenant_id: str) -> list[Credential]:
    """Every credential of a tenant, oldest first."""
    query = select(Credential).where(
        Credential.tenant_id == tenant_id, Credential.deleted_at.is_(None)
    )
    return list(session.scalars(query.order_by(Credential.created_at, Credential.id)))


def delete(session: Session, row: Credential) -> None:
    """Forget the secret; jobs that name it fail from their next attempt on."""
    row.deleted_at, row.sealed = database_now(session), ""


def of_recipe(session: Session, tenant_id: str, recipe: Recipe, master: bytes) -> str | None:
    """The secret that a recipe's model and data are fetched with, or None when it names none.

    Raises:
        CredentialNotUsable: it names one that the tenant does not have, or that cannot be opened.
    """
    if recipe.credential is None:
        return None
    return reveal(session, tenant_id, *recipe.credential, master)


def reveal(session: Session, tenant_id: str, param: str, credential_id: str, master: bytes) -> str:
    """The secret of a credential that the field `param` names.

    Raises:
        CredentialNotUsable: the tenant does not have it, or it cannot be opened.
    """
    try:
        return _reveal(get(session, tenant_id, credential_id), master, param)
    except NotFound as error:
        raise CredentialNotUsable(f"{param}: {error.message}", param=param) from error


def _reveal(row: Credential, master: bytes, param: str) -> str:
    content = base64.b64decode(row.sealed)
    nonce, sealed = content[:_NONCE_BYTES], content[_NONCE_BYTES:]
    try:
        return _cipher(master).decrypt(nonce, sealed, _bound_to(row)).decode()
    except InvalidTag as error:
        message = f"{param}: {row.id} was sealed under another installation secret"
        raise CredentialNotUsable(message, param=param) from error


def _cipher(master: bytes) -> AESGCM:
    return AESGCM(hmac.digest(master, b"credentials", hashlib.sha256))


def _bound_to(row: Credential) -> bytes:
    return f"{row.id}\0{row.tenant_id}\0{row.kind}".encode()
