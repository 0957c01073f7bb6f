# SPDX-License-Identifier: Apache-2.0
"""Pages by number: which are free, and how many hold each of the others. Knows neither tensors nor tokens."""

from __future__ import annotations


class PagePool:
    """Hands out pages and counts their holders.

    Args:
        n_pages: pages there are; their numbers are 0 to ``n_pages - 1``.
    """

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self._holders = [0] * n_pages
        # Taken from the end, so that low numbers come first.
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def n_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def take(self) -> int | None:
        """A free page, held once; None if there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Adds a holder to a page that has at least one.

        Raises:
            ValueError: nobody holds it, so what stands in it is not known.
        """
        if not self._holders[page]:
            raise ValueError("A free page cannot be shared.")
        self._holders[page] += 1

    def let_go(self, page: int) -> bool:
        """Takes a holder away.

        Returns:
            Whether that was the last one: the page is free now.

        Raises:
            ValueError: nobody holds it.
        """
        if not self._holders[page]:
            raise ValueError("The page is free already.")
        self._holders[page] -= 1
        if self._holders[page]:
            return False
        self._free.append(page)
        return True
