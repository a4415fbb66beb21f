"""The intermediate layers of a distillation, checked before anything is computed: each weight is of a layer that will be cached."""

from ...jobs.extraction.options import TeacherRequest
from ...jobs.training.layers import weighted_layers
from ...storage.core.events import OnEvent
from ...teachers.registry.layers import stored_layers
from .recipes import DistillRecipes


def check_layers(recipes: DistillRecipes, teachers: tuple[TeacherRequest, ...], on_event: OnEvent) -> None:
    """Raise BadInput for layers that a resolved teacher has not and weights of what is not cached; say what no weight asks for.

    What a proxy teaches are its final tokens.
    """
    specs = [request.spec for request in teachers if request.spec is not None]
    stored = {spec.name: stored_layers(spec, recipes.extract.layers) for spec in specs}
    students = [resolved for by_stage in recipes.students.values() for resolved in by_stage.values()]
    of_teachers = students if recipes.proxy is None else [recipes.proxy]
    learnt = [weighted_layers(resolved.recipe.teacher, stored) for resolved in of_teachers]
    for resolved in students if recipes.proxy is not None else ():
        _ = weighted_layers(resolved.recipe.teacher, {"the proxy": ()})
    for name, layers in stored.items():
        if unread := [str(layer) for layer in layers if not any(layer in by_teacher.get(name, ()) for by_teacher in learnt)]:
            text = f"layer {', '.join(unread)} of {name} is cached, and no weight asks for it: --layer-weight {unread[0]}=1 would"
            on_event({"event": "note", "text": text})
