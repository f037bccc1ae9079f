"""Any decay on any torch optimizer."""

from weightdecay.attachment.hooks import Attachment, attach
from weightdecay.attachment.stepping import PENDING, Intended, Watcher
from weightdecay.attachment.takeover import DECAY, LAMBDA, TAKEN_OVER

__all__ = ["DECAY", "LAMBDA", "PENDING", "TAKEN_OVER", "Attachment", "Intended", "Watcher", "attach"]
