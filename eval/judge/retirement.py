"""Judge models that were or will be shut down: a night should say so before the endpoint answers 404."""

from __future__ import annotations

from datetime import date, timedelta
from urllib.parse import urlsplit

from alignment.recipe.evaluation import Judge

PLAN_NOTICE = timedelta(days=90)
"""A plan and a recipe check name the retirement this long before it."""
NIGHT_NOTICE = timedelta(days=30)
"""A night alerts this long before the retirement."""

OPENAI = "api.openai.com"
RETIREMENTS = {
    date(2026, 10, 23): """
        gpt-3.5-turbo gpt-3.5-turbo-0125 gpt-4 gpt-4-0613 gpt-4-1106-preview gpt-4-turbo gpt-4-turbo-2024-04-09
        gpt-4o-2024-05-13 gpt-4.1-nano gpt-4.1-nano-2025-04-14 o1 o1-2024-12-17 o1-pro o1-pro-2025-03-19
        o3-mini o3-mini-2025-01-31 o4-mini o4-mini-2025-04-16
    """,
    date(2026, 12, 11): """
        gpt-5 gpt-5-2025-08-07 gpt-5-mini gpt-5-mini-2025-08-07 gpt-5-nano gpt-5-nano-2025-08-07
        gpt-5-pro gpt-5-pro-2025-10-06 o3 o3-2025-04-16 o3-pro o3-pro-2025-06-10
    """,
    date(2027, 1, 14): """
        gpt-4o gpt-4o-2024-08-06 gpt-4o-2024-11-20 gpt-4o-mini gpt-4o-mini-2024-07-18
        gpt-4.1 gpt-4.1-2025-04-14 gpt-4.1-mini gpt-4.1-mini-2025-04-14
    """,
    date(2027, 4, 1): "gpt-5.1 gpt-5.1-2025-11-13",
}
"""Models by the day on which OpenAI's own API shuts them down, as announced on
https://developers.openai.com/api/docs/deprecations in November 2026. Other endpoints have dates of their own, and a
recipe's `judge.retires` comes first."""
DAYS = {model: day for day, models in RETIREMENTS.items() for model in models.split()}


def retires(judge: Judge | None) -> date | None:
    """The day on which a judge is shut down, if the recipe or OpenAI names one."""
    if judge is None or judge.model is None:
        return None
    if judge.retires is not None:
        return judge.retires
    if judge.base_url is not None and urlsplit(judge.base_url).hostname != OPENAI:
        return None
    return DAYS.get(judge.model.removeprefix("ft:").partition(":")[0])  # fine-tuned models go with their base


def retirement(judge: Judge | None, today: date, notice: timedelta = PLAN_NOTICE) -> str | None:
    """One line about a judge that retires within `notice` or has retired. The line is the same every day."""
    day = retires(judge)
    if judge is None or day is None or today < day - notice:
        return None
    when = f"retires on {day}" if today < day else f"has been retired since {day}"
    return f"the judge {judge.model} {when}: name another in judge.model, and every suite it judges is scored anew"
