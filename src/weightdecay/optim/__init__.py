"""The optimizers: everything that `torch.optim.Optimizer` asks for.

Start with `optimizer.py`. `hyperparameters.py` checks a group and translates it for the rules; `presets/` has the named
optimizers; `checkpoint.py` loads and saves, `migrate.py` carries state from other optimizers; `schedules.py` and
`schedulers.py` change λ over a run; `attach/` puts a decay on any optimizer; `torch_equivalents.py` has a row for each of
torch's optimizers, and `as_ours.py` looks at one of them as one of this package; `unwrap.py` finds the optimizer inside a
wrapper.
"""
