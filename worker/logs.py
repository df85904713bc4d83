"""Bringing the logs of ended attempts from this host's disk into the artifact store."""

import functools
import logging

from sqlalchemy.exc import DBAPIError

from registry import attempts
from registry.db import reading
from registry.errors import BlobNotFound, StorageError
from worker.workplace import Workplace

logger = logging.getLogger(__name__)


def keep_logs(workplace: Workplace, job_id: str) -> None:
    """Store what attempts of a job left here, also those of a worker that was killed.

    A log is worth less than the job: what cannot be stored now is tried again after the next
    attempt.
    """
    with reading(workplace.factory) as session:
        rows = attempts.without_log(session, job_id)
    for row in rows:
        path = workplace.settings.data_dir / attempts.log_name(job_id, row.fence)
        if not path.is_file():
            continue
        try:
            workplace.store.require_space(path.stat().st_size)
            blob = workplace.store.put_file(path)
            keep = functools.partial(attempts.keep_log, job_id=job_id, fence=row.fence, blob=blob)
            workplace.apply(keep)
        except (BlobNotFound, StorageError, DBAPIError, OSError) as error:
            logger.warning("job %s: log of lease %d not kept: %s", job_id, row.fence, error)
            return
        path.unlink(missing_ok=True)
