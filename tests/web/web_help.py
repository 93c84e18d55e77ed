"""What visitors do on the page, with a mouse and without."""

from pathlib import Path
from typing import Any

from waiting import PATIENCE


def patient_page(browser: Any, **options: Any) -> Any:
    """A page of a new visitor, who waits as long as a busy machine takes; for files that are asked for, too."""
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * PATIENCE)
    return context.new_page()


def press_until(page: Any, place: str, key: str, most: int = 60) -> None:
    """Goes on with Tab until something that is, or is inside, `place` has the focus, then presses a key there."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("place => !!document.activeElement.closest(place)", place):
            page.keyboard.press(key)
            return
    raise AssertionError(f"{place} is not reached by the keyboard")


def give(page: Any, sent: dict[str, Path], **fields: str) -> None:
    """Chooses both files, animates without a face (the tiny locator finds none in noise), and sets fields."""
    page.locator("#portrait input[type=file]").set_input_files(sent["portrait"])
    page.locator("#speech input[type=file]").set_input_files(sent["speech"])
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("Animate without knowing who it is").check()
    for name, value in fields.items():
        page.locator(f"#{name} input, #{name} textarea").fill(value)
    page.locator("#preview img").wait_for()
    page.locator("#estimate", has_text="About").wait_for()
    page.locator("#rights input").check()
