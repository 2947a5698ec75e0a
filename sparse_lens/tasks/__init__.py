"""Two-answer tasks on Python source: own versions of the twenty of arXiv:2511.13653, controls, and tasks of one's own."""

from sparse_lens.tasks.batch import AnyTask, PromptPair, TaskBatch
from sparse_lens.tasks.metrics import Metric, metric_name
from sparse_lens.tasks.pair_task import PairTask, task_from_file, task_from_pairs
from sparse_lens.tasks.registry import available_tasks, get_task, register_task
from sparse_lens.tasks.task import Task

__all__ = [
    "AnyTask",
    "Metric",
    "PairTask",
    "PromptPair",
    "Task",
    "TaskBatch",
    "available_tasks",
    "get_task",
    "metric_name",
    "register_task",
    "task_from_file",
    "task_from_pairs",
]
