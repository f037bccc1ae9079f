"""D2: what was to be exempt is not, or a weight is exempt by an accident of its name.

Source: facebookresearch/deit #39, huggingface/pytorch-image-models #2712, huggingface/transformers #33; the substrings are
those that Trainers and fine-tuning scripts look for.
"""

import re
from collections.abc import Iterator

from weightdecay.audit.doctor.findings import Finding
from weightdecay.audit.doctor.fix_code import made
from weightdecay.audit.doctor.setup import Case, names
from weightdecay.groups.params import unheard

ID, TITLE = "D2", "an exemption that matches nothing, or too much"
_SUBSTRING = re.compile(r"bias|norm|ln_|ln\d|bn|layernorm", re.IGNORECASE)


def check(case: Case) -> Iterator[Finding]:
    """Yield what asks for no decay and is not heard, and the weights that a substring exempts."""
    asking = [each for each in case.decaying if each.param.asked]
    if asking:
        yield Finding(
            ID,
            "warning",
            "the model asks that these tensors shall not decay, and they do",
            names(asking),
            {"asked_by": sorted({str(each.param.asked) for each in asking}), "weight_decay": sorted({e.lam for e in asking})},
            case.left_in_words([each.group for each in asking]),
            *made(case),
        )
    if case.is_first and not case.is_flattened:
        for who, patterns in unheard(case.model):
            yield Finding(
                ID,
                "warning",
                f"{who} names no parameter that there is",
                (),
                {"named": list(patterns), "parameters": len(case.params)},
                "what it was meant to keep from decay decays with the rest",
                "# return names as in:\nprint([name for name, _ in model.named_parameters()])",
                optimizer=case.everywhere,
            )
    weights = [each for each in case.members if each.role == "weight" and each.tensor.ndim >= 2 and not each.param.asked]
    exempt = [each for each in weights if each.lam == 0 and _SUBSTRING.search(each.name)]
    plainly = [each for each in weights if not _SUBSTRING.search(each.name)]
    if exempt and plainly and all(each.lam > 0 for each in plainly):
        words = sorted({match[0].lower() for each in exempt if (match := _SUBSTRING.search(each.name))})
        yield Finding(
            ID,
            "warning",
            "weights do not decay that look like norms or biases by their names alone",
            names(exempt),
            {
                "in_their_names": words,
                "values": sum(each.tensor.numel() for each in exempt),
                "weights_that_decay": len(plainly),
                "shapes": [str(tuple(each.tensor.shape)) for each in exempt[:3]],
            },
            "they grow as if λ were 0, which it is for them",
            *made(case, extends=True),
        )
