"""Known troubles of RL, each named once in one line with its cause, what helps, and where to read on."""

import logging
from collections.abc import Mapping

log = logging.getLogger("cutaway")
PAGE = "docs/stages/rl.md"
KNOWN = (
    ("degenerate_groups", 0.9, True, "nine groups in ten earn the same reward: easier or harder prompts, or dynamic"),
    ("advantage_zero", 0.98, True, "hardly an answer has an advantage: nothing is learnt from this rollout"),
    ("entropy", 0.02, False, "entropy is all but gone, so answers no longer differ: lower adam_lr, raise clip_high"),
    ("kl_ref_k3", 2.0, True, "the policy is far from the model it began as: lower adam_lr or raise beta"),
    ("kl_old_k3", 0.5, True, "updates leave the policy that answered far behind: lower adam_lr, or set target_kl"),
    ("truncated", 0.9, True, "nine answers in ten are cut off: no end of turn is learnt; raise max_new_tokens"),
    ("unjudged", 0.5, True, "most answers could not be judged: see the warnings above"),
    ("sampler_mismatch", 0.05, True, "sampler and trainer disagree on log-probabilities: set importance_cap to 2"),
)
"""Metric, bound, whether it is above the bound that is the trouble, and what to say."""


class Troubles:
    """What was said already."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def look(self, means: Mapping[str, float]) -> None:
        """Name what is wrong in a line of metrics and was not named before."""
        for name, bound, above, words in KNOWN:
            value = means.get(name)
            if value is None or name in self.told or (value <= bound if above else value >= bound):
                continue
            self.told.add(name)
            log.warning("trouble: %s = %.3g: %s (%s)", name, value, words, PAGE)
