"""A signal that comes in the middle of a long call."""

import signal


def handle_in_call(function, interval=0.05):
    """Let a handler run once, in the first call that takes longer than an interval in seconds.

    That is when two signals in a row find the same instruction: one alone may come before the call, on a busy machine.
    """
    before = None

    def handler(number, frame):
        nonlocal before
        here = frame, frame.f_lasti
        if here != before:
            before = here
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        function(number, frame)

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
