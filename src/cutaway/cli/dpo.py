"""`cutaway dpo`: learning from preferences. Flags to settings; the work is in `stages/dpo.py`."""

from collections.abc import Sequence

from cutaway.cli.common import parse_stage


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("dpo", argv)
    from cutaway.stages import dpo

    dpo.run(recipe, run)
    return 0
