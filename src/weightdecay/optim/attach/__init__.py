"""Any decay on any torch optimizer."""

from weightdecay.optim.attach.attachment import Attachment, attach
from weightdecay.optim.attach.host_groups import DECAY, LAMBDA, TAKEN_OVER
from weightdecay.optim.attach.step import PENDING, Intended, Watcher

__all__ = ["DECAY", "LAMBDA", "PENDING", "TAKEN_OVER", "Attachment", "Intended", "Watcher", "attach"]
