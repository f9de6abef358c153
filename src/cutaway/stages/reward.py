"""Reward model: a score for a conversation's last answer, such that the better of two answers scores higher.

    python -m cutaway.stages.reward recipe.toml [--resume]       the same as `cutaway reward`, without tyro

The equation is in `objectives/reward.py`, the network in `model/reward.py`. The score is read after the last token of
each answer; both answers of a pair lie side by side in a row.
"""

import sys
import time
from pathlib import Path

from torch import Tensor

from cutaway.data.pairs import PairBatch, at_the_end
from cutaway.errors import UserError
from cutaway.model.moe import Routing
from cutaway.model.reward import RewardModel
from cutaway.objectives.reward import bradley_terry, brier, calibration_gaps
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.stages import pairwise, shared
from cutaway.stages.pairwise import Means, per_answer
from cutaway.training.derive import REWARD
from cutaway.training.distributed import joined_ranks

BINS = 10


def run(recipe: Recipe, run: RunSettings) -> Path:
    """Train a reward model on the decoder of `run.init`."""
    started = time.monotonic()
    shared.prepare_out(run)
    settings = recipe.reward
    if not settings.centre >= 0:
        raise UserError(f"centre is {settings.centre}, must be 0 or more")
    with joined_ranks() as ranks:
        base, tokenizer = shared.start_model(run, settings)
        pairs, train, heldout = pairwise.read_data(settings, run, tokenizer, spare=2)
        model = RewardModel.on(base)
        network = shared.build_network(model, settings, ranks)

        def measure(batch: PairBatch, held_out: bool, routing: Routing | None) -> dict[str, Tensor]:
            """Loss and metrics of every pair of a batch."""
            scores, _ = per_answer(network.forward(batch, local=held_out, routing=routing), batch)
            chosen, rejected = scores.unbind(1)
            found = metrics(chosen.detach(), rejected.detach(), held_out)
            return {"loss": bradley_terry(chosen, rejected, settings.centre)} | found

        data = [at_the_end(pair) for pair in pairs], train, heldout
        material = pairwise.pairwise(
            "reward", network, tokenizer, data, settings, measure, finish=calibrated, peak=REWARD
        )
        return shared.train(material, shared.with_shape(recipe, model), run, started=started)


def metrics(chosen: Tensor, rejected: Tensor, held_out: bool) -> dict[str, Tensor]:
    """What to look at, one value a pair; of held-out pairs also how far to trust the stated probabilities."""
    margin = chosen - rejected
    found = {"accuracy": (margin > 0).float(), "margin": margin, "chosen_score": chosen, "rejected_score": rejected}
    if held_out:
        found |= {"brier": brier(margin)} | {f"gap_{b}": gap for b, gap in enumerate(calibration_gaps(margin, BINS))}
    return found


def calibrated(means: Means) -> Means:
    """The gaps of the bins as the one expected calibration error."""
    error = sum(abs(means[f"gap_{b}"]) for b in range(BINS))
    return {key: value for key, value in means.items() if not key.startswith("gap_")} | {"calibration_error": error}


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))
