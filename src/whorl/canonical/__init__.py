"""From the tensors of a file to matrices that two models can be compared by.

    model = CanonicalModel(source)            # which tensor plays which role, checked against the config
    for part in model.parts():                # one sublayer in memory at a time
        sublayer = canonical(part)            # norms and biases folded: an `Attention` or an `Mlp`

`docs/canonical.md` lists the roles, what is folded, and which function-preserving edits that neutralises.
"""

from whorl.canonical.form import canonical
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import MATRIX_ROLES, Attention, Mlp, ModelShape, Part

__all__ = ["MATRIX_ROLES", "Attention", "CanonicalModel", "Mlp", "ModelShape", "Part", "canonical"]
