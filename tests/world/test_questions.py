"""Questions and their answers."""

from tests.world.perfect import Perfect
from uae.bench.result import Share
from uae.world.questions import make_questions, perception
from uae.world.scene import (
    first_scenes,
)


def test_constant_answers():
    scenes = first_scenes("test", 60)
    questions = [q for _, q in make_questions(scenes)]
    answers = perception(Perfect(answer="yes"), scenes)
    assert answers["all"] == Share(sum(q.answer == "yes" for q in questions), len(questions))
    assert answers["small"] == Share(
        sum(q.answer == "yes" for q in questions if q.small), sum(q.small for q in questions)
    )
    assert answers["color"].percent == 0 and 30 < answers["relation"].percent < 70
    assert sum(answers[kind].total for kind in {q.kind for q in questions}) == answers["all"].total
