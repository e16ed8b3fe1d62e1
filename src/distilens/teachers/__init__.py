"""Teachers: anything that answers a batch, `teacher(batch, needs) -> Answer`."""

from distilens.teachers.live import LiveTeacher, nobody

__all__ = ["LiveTeacher", "nobody"]
