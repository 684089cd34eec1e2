"""Everyone its minimum, then one step each in turn while capacity lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmsched.core.policy import GangView, View


class Even:
    period_s = 0.0

    def share(self, gangs: Sequence[GangView], capacity: float, view: View) -> Mapping[str, int]:
        rows = [(gang.id, view.sizes(gang), view.gpus_per_bundle(gang)) for gang in gangs]
        at = {name: 0 for name, _, _ in rows}
        left = capacity - sum(sizes[0] * gpus for _, sizes, gpus in rows)
        grew = True
        while grew:
            grew = False
            for name, sizes, gpus in rows:
                step = at[name] + 1
                if step < len(sizes) and (sizes[step] - sizes[step - 1]) * gpus <= left:
                    left -= (sizes[step] - sizes[step - 1]) * gpus
                    at[name] = step
                    grew = True
        return {name: sizes[at[name]] for name, sizes, _ in rows}
