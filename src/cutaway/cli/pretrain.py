"""`cutaway pretrain`: Next-token training on plain text. Flags to settings; the work is in `stages/pretrain.py`."""

from collections.abc import Sequence

from cutaway.cli.common import parse_stage


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("pretrain", argv)
    from cutaway.stages import pretrain

    pretrain.run(recipe, run)
    return 0
