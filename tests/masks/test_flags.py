"""Invalid flags are rejected by name."""

import numpy as np
import pytest

from jattn.masks import Flagged


def test_flags_that_are_none():
    with pytest.raises(ValueError, match="`query_flags` or `key_flags` must be given"):
        Flagged()
    with pytest.raises(ValueError, match="`key_flags` must be a boolean array"):
        Flagged(key_flags=np.ones(3))
