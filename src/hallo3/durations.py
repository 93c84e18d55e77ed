"""How durations are told to people."""


def clock(seconds: float) -> str:
    """75.2 → `1:15`, 3725 → `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
