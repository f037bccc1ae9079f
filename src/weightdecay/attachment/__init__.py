"""Any decay on any torch optimizer."""

from weightdecay.attachment.groups import DECAY, LAMBDA, TAKEN_OVER
from weightdecay.attachment.hooks import Attachment, attach
from weightdecay.attachment.stepping import PENDING, Intended, Watcher

__all__ = ["DECAY", "LAMBDA", "PENDING", "TAKEN_OVER", "Attachment", "Intended", "Watcher", "attach"]
