"""Flags are checked before anything is downloaded or trained, with an error of the command line."""

import pytest

WRONG = {
    "caption": (["--features=7"], "--features: must be a positive multiple of 4: 7"),
    "summarize": (["--epochs=0"], "--epochs: must be an integer of at least 1: 0"),
    "translate": (["--features=half"], "--features: must be a positive multiple of 4: half"),
    "prune_heads": (["--penalty=nan"], "--penalty: must be a number of at least 0: nan"),
    "transcribe": (["--beams=0"], "--beams: must be an integer of at least 1: 0"),
    "map_atoms": (["CCO"], "a reaction must be SMILES as in 'CCO>>CC=O'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_flags_are_checked_first(example, name, capsys):
    flags, message = WRONG[name]
    with pytest.raises(SystemExit):
        example(name).main(flags)
    assert message in capsys.readouterr().err
