"""Every operation of the API, once: what both clients can do."""

from typing import Final

from espalier import calls_administration as administration
from espalier import calls_jobs as jobs
from espalier import calls_published as published
from espalier.calls import Operation

TRAINING_STATE: Final = "training_state/"
"""Files under this path resume a run; using the model needs none of them."""


class Operations:
    """One method for each operation."""

    submit = Operation(jobs.submit)
    estimate = Operation(jobs.estimate)
    get = Operation(jobs.get)
    list_jobs = Operation(jobs.list_jobs)
    cancel = Operation(jobs.cancel)
    pause = Operation(jobs.pause)
    resume = Operation(jobs.resume)
    retry = Operation(jobs.retry)
    update = Operation(jobs.update)
    delete = Operation(jobs.delete)
    events = Operation(jobs.events)
    metrics = Operation(jobs.metrics)
    logs = Operation(jobs.logs)

    list_checkpoints = Operation(published.list_checkpoints)
    list_evaluations = Operation(published.list_evaluations)
    get_checkpoint = Operation(published.get_checkpoint)
    list_files = Operation(published.list_files)
    download_url = Operation(published.download_url)
    list_files_sent = Operation(published.list_files_sent)
    delete_file = Operation(published.delete_file)
    register_model = Operation(published.register_model)
    list_models = Operation(published.list_models)
    add_version = Operation(published.add_version)
    list_versions = Operation(published.list_versions)
    set_alias = Operation(published.set_alias)
    compare = Operation(published.compare)
    frontier = Operation(published.frontier)

    create_key = Operation(administration.create_key)
    list_keys = Operation(administration.list_keys)
    rotate_key = Operation(administration.rotate_key)
    revoke_key = Operation(administration.revoke_key)
    store_credential = Operation(administration.store_credential)
    list_credentials = Operation(administration.list_credentials)
    delete_credential = Operation(administration.delete_credential)
    usage = Operation(administration.usage)
    create_webhook = Operation(administration.create_webhook)
    list_webhooks = Operation(administration.list_webhooks)
    update_webhook = Operation(administration.update_webhook)
    delete_webhook = Operation(administration.delete_webhook)
    rotate_webhook_secret = Operation(administration.rotate_webhook_secret)
    test_webhook = Operation(administration.test_webhook)
    list_deliveries = Operation(administration.list_deliveries)
    redeliver = Operation(administration.redeliver)
    list_audit = Operation(administration.list_audit)
    verify_audit = Operation(administration.verify_audit)
