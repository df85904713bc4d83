"""Held-out losses by domain, and the mixture that follows them."""

from transformers import PreTrainedModel

from pruning.data.reweighting import updated_weights
from pruning.data.scaling import fitted_loss
from pruning.errors import InvalidData
from pruning.evaluation.perplexity import Perplexity, evaluate_perplexity
from pruning.events import EvaluationStage, MixtureChanged
from pruning.manifest import Measurement
from pruning.methods.run import Run

SUITE = "domains"
_MAX_METRIC_CHARACTERS = 64


def measure_held_out(run: Run) -> Perplexity:
    """Perplexity of the model as it stands, over all held-out text and stream by stream."""

    def measure(model: PreTrainedModel) -> Perplexity:
        return evaluate_perplexity(
            model,
            run.corpus.held_out,
            context_length=run.recipe.evaluation.context_length,
            precision=run.recipe.recovery.precision,
            data_fingerprint=run.corpus.fingerprint,
        )

    return run.loop.measure(measure)


def record_domain_losses(
    run: Run, result: Perplexity, stage: EvaluationStage, increment: int
) -> None:
    """Keep the loss of each domain, where there are several to compare."""
    losses = domain_losses(run, result)
    if len(losses) < 2:
        return
    for name, loss in losses.items():
        run.record(
            Measurement(
                stage=stage,
                increment=increment,
                suite=SUITE,
                metric=_metric(run, name),
                value=loss,
                protocol=result.protocol,
            )
        )


def domain_losses(run: Run, result: Perplexity) -> dict[str, float]:
    """Nats per token by domain; empty where the evaluation text is not the domains' own."""
    if run.recipe.data.evaluation is not None:
        return {}
    return {
        domain.name: loss
        for domain, loss in zip(run.corpus.domains, result.stream_losses, strict=True)
        if loss is not None
    }


def update_mixture(run: Run, increment: int, result: Perplexity | None = None) -> None:
    """Weigh the domains by how far each is above its reference, if the recipe wants that."""
    mixture = run.recipe.data.mixture
    sampler = run.loop.sampler
    trains = run.recipe.recovery.kind != "none"
    if mixture.kind == "static" or not trains or len(sampler.weights) < 2:
        return
    losses = domain_losses(run, result or measure_held_out(run))
    weights = updated_weights(sampler.weights, losses, _references(run), mixture)
    sampler.reweigh(weights)
    run.emit(
        MixtureChanged(
            increment=increment,
            step=run.loop.progress.step,
            num_tokens=run.num_tokens,
            weights=weights,
            losses=losses,
        )
    )


def _references(run: Run) -> dict[str, float]:
    """The recipe's reference losses, those that other models let expect of the target's size, or
    what the base model reached at the start of the run.

    Raises:
        InvalidData: the recipe names a domain that the corpus does not have.
    """
    mixture = run.recipe.data.mixture
    given = mixture.references
    if mixture.measured_models is not None:
        given = {
            name: fitted_loss(
                [(model.num_parameters, model.losses[name]) for model in mixture.measured_models],
                run.target_num_parameters,
            )
            for name in mixture.measured_models[0].losses
        }
    names = {_metric(run, domain.name): domain.name for domain in run.corpus.domains}
    if given is None:
        return {
            names[m.metric]: m.value
            for m in run.measurements
            if (m.suite, m.stage) == (SUITE, "base")
        }
    if unknown := sorted(set(given) - set(names.values())):
        raise InvalidData(
            f"no domain is called {', '.join(unknown)}",
            param="data.mixture.references",
            hint=f"The corpus has {', '.join(sorted(names.values()))}.",
        )
    return dict(given)


def _metric(run: Run, name: str) -> str:
    """The domain's name, or where it is too long for the registry its number and beginning."""
    if len(name) <= _MAX_METRIC_CHARACTERS:
        return name
    index = [domain.name for domain in run.corpus.domains].index(name)
    return f"{index:03d}.{name}"[:_MAX_METRIC_CHARACTERS]
