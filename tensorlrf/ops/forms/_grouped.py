"""A convolution with groups: what the format of the groups does, on all of them at once."""

from __future__ import annotations

from tensorlrf.factors import Factors, Grouped
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._form import Form, form_of
from tensorlrf.ops.forms.shared._slide import Conv
from tensorlrf.ops.forms.stages import Paths


class GroupedForm(Form[Grouped]):
    """The form of one group, on stacks."""

    def conv(self, f: Grouped, conv: Conv) -> Paths:
        return form_of(f.group(0)).conv(_stack(f), conv)

    def kernels(self, f: Grouped, conv: Conv) -> dict[str, tuple[int, ...]]:
        return form_of(f.group(0)).kernels(_stack(f), conv)

    def count_dense(self, f: Grouped, counter: Counter) -> bool:
        one = f.group(0)
        return all(form_of(one).count_dense(one, counter) for _ in range(f.groups))

    def groups(self, f: Grouped) -> int:
        return f.groups

    def of_a_group(self, f: Grouped) -> Factors:
        return f.group(0)


def _stack(f: Grouped) -> Factors:
    """The groups as one object of their format, whose tensors have a leading dimension g."""
    return type(f.group(0))._assemble(f.parts, f.of_meta)
