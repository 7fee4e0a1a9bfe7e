"""Learning-rate schedules."""

from edgeailite.xnn.optim.lr_scheduler import SCHEDULERS, Schedule, make_lr_scheduler

__all__ = ["SCHEDULERS", "Schedule", "make_lr_scheduler"]
