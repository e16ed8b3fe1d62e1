"""Teachers: anything that answers a batch, `teacher(batch, needs) -> Answer`."""

from distilens.specs import Registry
from distilens.teachers.live import LiveTeacher, nobody
from distilens.teachers.stored import StoredTeacher

ANSWERS = Registry("answers", {"live": "distilens.teachers.stored:live", "stored": "distilens.teachers.stored:stored"})

__all__ = ["ANSWERS", "LiveTeacher", "StoredTeacher", "nobody"]
