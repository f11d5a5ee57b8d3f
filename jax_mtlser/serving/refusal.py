"""What is answered to a request that cannot be served."""

__all__ = ["Refusal"]


class Refusal(Exception):
    """A request that the sender can mend; the message names the value, the limit and the fix.

    Attributes:
        status: of HTTP: 403 for a foreign site, 408 too slow, 413 too large or too long, 415 no audio, 422 what else
            is wrong with the recording or the question, 503 too busy.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
