"""Preference: make the better of two answers likelier than the worse, without going far from where the model started.

    python -m cutaway.stages.dpo recipe.toml [--resume]       the same as `cutaway dpo`, without tyro

The equations are in `objectives/preference.py`. One forward pass gives the log-probabilities of both answers, which lie
side by side in a row. The reference is the model as the stage finds it.
"""

import dataclasses
import sys
import time
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.data.pairs import PairBatch
from cutaway.errors import UserError
from cutaway.model.moe import Routing
from cutaway.objectives import preference
from cutaway.objectives.preference import Pairs
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.stages import DPOSettings
from cutaway.stages import pairwise, shared
from cutaway.stages.pairwise import per_answer
from cutaway.stages.reference import REFERENCE_FREE, Reference, reference_distance, reference_of
from cutaway.training.derive import PREFERENCE, Rule
from cutaway.training.distributed import joined_ranks
from cutaway.training.network import Network

BY_TOKEN = ("simpo", "orpo")
"""Losses whose implicit reward is beta times the *mean* log-probability of an answer's tokens."""
IDLE: dict[str, tuple[float | None, tuple[str, ...]]] = {
    "gamma": (None, ("dpo", "robust", "hinge", "ipo", "dpo_norm", "kto", "cpo", "orpo")),
    "label_smoothing": (0.0, ("hinge", "ipo", "kto", "orpo")),
    **dict.fromkeys(
        ("desirable_weight", "undesirable_weight"),
        (1.0, ("dpo", "robust", "hinge", "ipo", "dpo_norm", "simpo", "cpo", "orpo")),
    ),
}
"""What a setting must be under losses that do not look at it."""


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Train the model of `run.init` on pairs of answers."""
    started = time.monotonic()
    shared.prepare_out(run)
    settings, rules = derive_loss(recipe.dpo)
    recipe = dataclasses.replace(recipe, dpo=settings)
    with joined_ranks() as ranks:
        model, tokenizer = shared.start_model(run, settings)
        data = pairwise.read_data(settings, run, tokenizer)
        network = shared.build_network(model, settings, ranks)
        reference = reference_of(network, data[0], settings)
        z0 = reference_distance(network, data[0], settings) if settings.loss == "kto" else None

        def measure(batch: PairBatch, held_out: bool, routing: Routing | None) -> dict[str, Tensor]:
            """Loss and metrics of every pair of a batch."""
            pairs = compare(network, batch, reference, held_out, routing)
            loss = pair_losses(pairs, settings, z0(batch) if z0 is not None else None)
            return {"loss": loss} | metrics(pairs, settings)

        material = pairwise.pairwise(
            "dpo",
            network,
            tokenizer,
            data,
            settings,
            measure,
            prompts=shared.question_prompts(tokenizer),
            peak=PREFERENCE,
        )
        return shared.train(material, shared.with_shape(recipe, model), run, rules=rules, started=started)


def compare(
    network: Network, batch: PairBatch, reference: Reference, local: bool, routing: Routing | None = None
) -> Pairs:
    """The log-probabilities of both answers, under the policy in one forward pass, and under the reference."""
    logprobs, tokens = per_answer(-network.token_losses(batch, local=local, routing=routing), batch)
    return Pairs(*logprobs.unbind(1), *reference(batch).unbind(1), *tokens.unbind(1))


def pair_losses(pairs: Pairs, settings: DPOSettings, kl: Float[Tensor, ""] | None = None) -> Float[Tensor, " pairs"]:
    """The loss that the settings name, one a pair; `kl` is KTO's $z_0$."""
    beta, smoothing = settings.beta, settings.label_smoothing
    assert beta is not None and smoothing is not None
    match settings.loss:
        case "dpo":
            loss = preference.dpo(pairs, beta, smoothing)
        case "robust":
            loss = preference.robust(pairs, beta, smoothing)
        case "hinge":
            loss = preference.hinge(pairs, beta)
        case "ipo":
            loss = preference.ipo(pairs, beta)
        case "dpo_norm":
            loss = preference.dpo_norm(pairs, beta, smoothing)
        case "simpo":
            assert settings.gamma is not None
            loss = preference.simpo(pairs, beta, settings.gamma, smoothing)
        case "cpo":
            loss = preference.cpo(pairs, beta, smoothing)
        case "orpo":
            loss = preference.orpo(pairs, beta)
        case "kto":
            assert kl is not None
            loss = _kto(pairs, settings, beta, kl)
    return loss + settings.nll_weight * preference.chosen_nll(pairs) if settings.nll_weight else loss


def _kto(pairs: Pairs, settings: DPOSettings, beta: float, kl: Float[Tensor, ""]) -> Float[Tensor, " pairs"]:
    """KTO takes answers one by one: a pair gives a desirable and an undesirable one, and here their mean."""
    ratios = torch.cat([pairs.chosen_ratio, pairs.rejected_ratio])
    desirable = torch.arange(len(ratios), device=ratios.device) < len(pairs.chosen)
    weights = settings.desirable_weight, settings.undesirable_weight
    return preference.kto(ratios, desirable, kl, beta, *weights).view(2, -1).mean(0)


@torch.no_grad()
def metrics(pairs: Pairs, settings: DPOSettings) -> dict[str, Float[Tensor, " pairs"]]:
    r"""What to look at, one value a pair.

    `margin` is the difference of the implicit rewards, $\beta h$; `accuracy` the share of pairs where it is positive.
    `kl` is $\log\pi_{ref} - \log\pi$ a token, over both answers: an estimate of $\mathrm{KL}(\pi_{ref} \| \pi)$ as far
    as the answers are such as the reference would write. Without a reference margins are those of the policy alone, a
    token in `BY_TOKEN`.
    """
    assert settings.beta is not None
    margin = pairs.mean_margin if settings.loss in BY_TOKEN else pairs.margin
    found = {
        "margin": settings.beta * margin,
        "accuracy": (margin > 0).float(),
        "chosen_logprob": pairs.chosen,
        "rejected_logprob": pairs.rejected,
    }
    if settings.loss not in REFERENCE_FREE:
        tokens = pairs.chosen_tokens + pairs.rejected_tokens
        found["kl"] = -(pairs.chosen_ratio + pairs.rejected_ratio) / tokens
    return found


def derive_loss(settings: DPOSettings) -> tuple[DPOSettings, list[Rule]]:
    """Fill in what the settings leave open of the loss. UserError for values that no loss can have."""
    loss = settings.loss
    if settings.reference == "live" and settings.rank == 0:
        raise UserError("reference = live needs an adapter to switch off: set rank, or take reference = cached")
    beta = {"dpo_norm": 5.0, "simpo": 2.5}.get(loss, 0.1) if settings.beta is None else settings.beta
    values = {
        "beta": beta,
        **({"gamma": 0.55 * beta} if loss == "simpo" else {}),
        "label_smoothing": 0.1 if loss == "robust" else 0.0,
        "nll_weight": 1.0 if loss in ("cpo", "orpo") else 0.0,
    }
    sources = {"dpo_norm": "arXiv 2411.15124", "simpo": "arXiv 2405.14734", "orpo": "arXiv 2403.07691"}
    missing = {name: value for name, value in values.items() if getattr(settings, name) is None}
    source = sources.get(loss, "arXiv 2305.18290")
    rules = [Rule(name, value, f"for {loss}", source) for name, value in missing.items()]
    settings = dataclasses.replace(settings, **missing)  # type: ignore[arg-type]
    assert settings.beta is not None and settings.label_smoothing is not None
    if not settings.beta > 0:
        raise UserError(f"beta is {settings.beta}, must be above 0")
    if not 0 <= settings.label_smoothing < 0.5:
        raise UserError(f"label_smoothing is {settings.label_smoothing}, must be at least 0 and below 0.5")
    for name, (nothing, losses) in IDLE.items():
        if loss in losses and getattr(settings, name) != nothing:
            raise UserError(f"{name} means nothing to loss {loss}: leave it away")
    for name in ("gamma", "nll_weight", "desirable_weight", "undesirable_weight"):
        if not (getattr(settings, name) or 0) >= 0:
            raise UserError(f"{name} is {getattr(settings, name)}, must be 0 or more")
    return settings, rules


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))
