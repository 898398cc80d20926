"""The deployable student: a backbone, the generator of teacher features, and the readouts of both."""

from gendd.student.student import Student, load

__all__ = ["Student", "load"]
