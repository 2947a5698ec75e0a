"""Two-answer tasks on Python source: own versions of some of the twenty of arXiv:2511.13653."""

from sparse_lens.tasks.registry import available_tasks, get_task, register_task
from sparse_lens.tasks.task import PromptPair, Task, TaskBatch

__all__ = ["PromptPair", "Task", "TaskBatch", "available_tasks", "get_task", "register_task"]
