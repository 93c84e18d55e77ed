"""What the page in a browser says to its server: which events there are, and what kind of thing each of them brings."""

import json
import re
from typing import Any

import gradio as gr
from pydantic import ValidationError

_PARTS = {"data", "event_data", "fn_index", "session_hash", "trigger_id"}
_SESSION = re.compile(r"[a-z0-9]{1,40}")
_KINDS: tuple[tuple[type[Any], type[Any] | None], ...] = (
    (gr.Textbox, str),
    (gr.Radio, str),
    (gr.Checkbox, bool),
    (gr.State, None),  # kept here; what is sent for it is not looked at
)


class Events:
    """The events of a page. Gradio answers one that is of another kind by a traceback in the log."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self._events = blocks.fns

    def has(self, said: Any) -> bool:
        """Whether `said`, a request's body, is an event as the page sends them."""
        if not isinstance(said, dict) or not said.keys() <= _PARTS:
            return False
        number, data, session = (said.get(name) for name in ("fn_index", "data", "session_hash"))
        event = self._events.get(number) if type(number) is int else None
        if event is None or not isinstance(data, list) or len(data) != len(event.inputs):
            return False
        if not isinstance(session, str) or not _SESSION.fullmatch(session):
            return False
        if not (said.get("trigger_id") is None or type(said["trigger_id"]) is int):
            return False
        if event.collects_event_data and not _is_choice(said.get("event_data")):
            return False
        json.dumps(said, ensure_ascii=False).encode()  # halves of characters end in a UnicodeEncodeError
        return all(map(_is_value, event.inputs, data))


def _is_choice(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("index")) is int and "value" in value


def _is_value(part: Any, value: Any) -> bool:
    """Whether a part of the page can have this value."""
    if isinstance(part, gr.Dataset):
        return type(value) is int
    if value is None:
        return True
    for kind, of_values in _KINDS:
        if isinstance(part, kind):
            return of_values is None or type(value) is of_values
    try:
        part.data_model.model_validate(value)
    except ValidationError:
        return False
    return True
