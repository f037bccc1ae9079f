"""Li, Grandvalet & Davoine 2018, arXiv:1802.01483: Ω(w) = (α/2)·‖w − w⁰‖₂², with the ½ that two of its ports leave out."""

SETTINGS = ({},)


def value(w, *, lam, w_0):
    return sum((x - start) ** 2 for x, start in zip(w, w_0, strict=True)) * lam / 2
