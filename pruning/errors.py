"""What can go wrong in a run, each with the code that a job reports.

PruningError
├── InvalidRecipe         the description of the run itself
├── InvalidModel          the model cannot be opened, or not safely
│   ├── UnsupportedModel  its architecture has no adapter
│   ├── ModelNotFound     no such repository, revision or path
│   └── ModelGated        a repository that this reader may not open
├── HubUnavailable        the hub does not answer, or not now
├── InvalidPlan           a plan contradicts the model it is applied to
├── TargetUnreachable     the constraints leave nothing more to remove
├── InvalidData           text that cannot be read, or too little of it
├── CheckpointCorrupt     a file is missing or its digest differs
├── ExportRefused         an engine would not compute the published model
├── NumericsDiverged      loss or gradient stayed non-finite after every rollback
└── OutOfMemory           the device is too small even at micro-batch 1
"""

from typing import ClassVar


class PruningError(Exception):
    """Base of every error the library raises on purpose.

    `code` names the kind for programs, `param` the recipe field at fault, `hint` what would be
    allowed.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.hint = hint


class InvalidRecipe(PruningError):
    code = "invalid_recipe"


class InvalidModel(PruningError):
    code = "invalid_model"


class UnsupportedModel(InvalidModel):
    code = "unsupported_architecture"


class ModelNotFound(InvalidModel):
    code = "model_not_found"


class ModelGated(InvalidModel):
    code = "model_gated"


class HubUnavailable(PruningError):
    code = "hub_unavailable"
    retryable = True


class InvalidPlan(PruningError):
    code = "invalid_plan"


class TargetUnreachable(PruningError):
    """`limit` is the number of parameters that would have been possible, where it is known."""

    code = "target_unreachable"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        hint: str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message, param=param, hint=hint)
        self.limit = limit


class InvalidData(PruningError):
    code = "data_invalid"


class CheckpointCorrupt(PruningError):
    code = "checkpoint_corrupt"
    retryable = True


class ExportRefused(PruningError):
    code = "export_refused"


class NumericsDiverged(PruningError):
    code = "numerics_diverged"


class OutOfMemory(PruningError):
    code = "gpu_oom"
