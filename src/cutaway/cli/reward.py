"""`cutaway reward`: training of a reward model. Flags to settings; the work is in `stages/reward.py`."""

from collections.abc import Sequence

from cutaway.cli.common import parse_stage


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("reward", argv)
    from cutaway.stages import reward

    reward.run(recipe, run)
    return 0
