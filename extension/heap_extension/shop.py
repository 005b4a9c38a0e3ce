"""A generated shop: seeded visits of a web shop as autocapture would record them, with element hierarchies.

The same seed and day give the same events. Visitors come back over weeks, arrive from campaigns, browse, search, sign
up and buy; countries and devices convert differently, so that analyses have something to find.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from heap_compiler.hierarchy import Element, encode
from heap_extension.load import LOADED_COLUMNS, LoadedEvent
from heap_extension.user_ids import hash_bigint

__all__ = ["DAYS", "DEFINITIONS", "shop_events"]

DAYS = 60
"""Days of history before the given one."""

DEFINITIONS = {
    "Viewed pricing": "pageview where path = '/pricing'",
    "Clicked sign up": "click where target_text = 'Sign up' and element matches 'form.signup button.primary'",
    "Signed up": "submit where path = '/signup'",
    "Viewed product": "pageview where path starts with '/product/'",
    "Purchase": "purchase",
}
"""The demo's defined events."""

_COUNTRIES = {
    "US": (34, 1.0),
    "DE": (18, 1.3),
    "GB": (14, 1.1),
    "FR": (12, 0.9),
    "IN": (12, 0.6),
    "BR": (10, 0.7),
}
_DEVICES = {"desktop": (55, 1.25), "mobile": (38, 0.7), "tablet": (7, 0.9)}
_BROWSERS = ["Chrome", "Chrome", "Chrome", "Safari", "Firefox", "Edge"]
_CAMPAIGNS = [
    (None, None, None),
    (None, None, None),
    ("google", "cpc", "brand"),
    ("newsletter", "email", "weekly"),
    ("instagram", "social", "launch"),
]
_PRODUCTS = [f"/product/{name}" for name in ("lamp", "chair", "desk", "shelf", "rug", "clock", "mirror", "sofa")]
_PLANS = ["free", "free", "free", "pro", "team"]

_BODY = [Element("html"), Element("body")]
_SIGN_UP = encode(
    [
        *_BODY,
        Element("form", "signup-form", ["signup", "card"]),
        Element("button", None, ["primary", "large"], {}, 3),
    ]
)
_NAV_SIGN_UP = encode([*_BODY, Element("nav", None, ["top"]), Element("a", None, ["link"], {"href": "/signup"}, 4)])
_ADD_TO_CART = encode([*_BODY, Element("main"), Element("button", "add-to-cart", ["primary"], {"type": "button"}, 1)])
_NAV_LINK = encode([*_BODY, Element("nav", None, ["top"]), Element("a", None, ["link"], {}, 2)])


def shop_events(now: datetime, *, users: int = 11_500, seed: int = 20_261) -> Iterator[LoadedEvent]:
    """About 17 events per user over `DAYS` days up to `now`, user by user."""
    rng = random.Random(seed)
    start = datetime(now.year, now.month, now.day, tzinfo=UTC) - timedelta(days=DAYS)
    for number in range(users):
        yield from _Visitor(rng, f"visitor-{number:06d}", start, now).events()


class _Visitor:
    """One person: who they are stays, where they are moves along."""

    def __init__(self, rng: random.Random, identity: str, start: datetime, now: datetime) -> None:
        self.rng = rng
        self.identity = identity
        self.user_id = hash_bigint(identity)
        self.now = now
        self.country = rng.choices(list(_COUNTRIES), [weight for weight, _ in _COUNTRIES.values()])[0]
        self.device = rng.choices(list(_DEVICES), [weight for weight, _ in _DEVICES.values()])[0]
        self.browser = rng.choice(_BROWSERS)
        self.appetite = _COUNTRIES[self.country][1] * _DEVICES[self.device][1] * rng.lognormvariate(-0.2, 0.5)
        self.time = start + timedelta(days=DAYS) * rng.random() ** 0.8
        self.signed_up = False
        self.count = 0
        self.context: dict[str, str | None] = {}
        self.session = 0

    def events(self) -> Iterator[LoadedEvent]:
        for _ in range(1 + int(self.rng.expovariate(0.45))):
            self.time = self._at_daytime(self.time)
            visit = list(self._visit())
            if visit[-1].time > self.now:
                return
            yield from visit
            self.time += timedelta(days=self.rng.expovariate(0.25))

    def _at_daytime(self, time: datetime) -> datetime:
        hour = min(23.9, max(0.0, self.rng.gauss(15, 4)))
        return time.replace(hour=int(hour), minute=int(hour % 1 * 60), second=self.rng.randrange(60), microsecond=0)

    def _visit(self) -> Iterator[LoadedEvent]:
        rng = self.rng
        source, medium, campaign = rng.choice(_CAMPAIGNS)
        landing = rng.choice(["/", "/", "/pricing", *_PRODUCTS[:3]])
        self.session = hash_bigint(f"{self.identity} {self.time}")
        self.context = {
            "library": "web",
            "platform": "web",
            "device_type": self.device,
            "browser": self.browser,
            "country": self.country,
            "domain": "shop.example",
            "landing_page": landing,
            "utm_source": source,
            "utm_medium": medium,
            "utm_campaign": campaign,
        }
        yield self._event("pageview", path=landing)
        for _ in range(int(rng.expovariate(0.33))):
            yield from self._click(_NAV_LINK, "a", "Products", landing)
            yield self._event("pageview", path=rng.choice([*_PRODUCTS, "/search", "/about"]))
        if not self.signed_up and rng.random() < 0.45 * self.appetite:
            yield self._event("pageview", path="/pricing")
            if rng.random() < 0.5 * self.appetite:
                yield from self._sign_up()
        if self.signed_up and rng.random() < 0.4 * self.appetite:
            yield from self._buy()

    def _sign_up(self) -> Iterator[LoadedEvent]:
        if self.rng.random() < 0.3:
            yield from self._click(_NAV_SIGN_UP, "a", "Sign up", "/pricing")
        yield self._event("pageview", path="/signup")
        yield from self._click(_SIGN_UP, "button", "Sign up", "/signup")
        if self.rng.random() < 0.8:
            self.signed_up = True
            yield self._event("submit", path="/signup", properties={"plan": self.rng.choice(_PLANS)})

    def _buy(self) -> Iterator[LoadedEvent]:
        product = self.rng.choice(_PRODUCTS)
        yield self._event("pageview", path=product)
        yield from self._click(_ADD_TO_CART, "button", "Add to cart", product)
        if self.rng.random() < 0.75:
            amount = round(self.rng.lognormvariate(3.6, 0.7), 2)
            properties = {"amount": amount, "items": self.rng.randint(1, 4), "product": product}
            yield self._event("purchase", path="/checkout", properties=properties)

    def _click(self, hierarchy: str, tag: str, label: str, path: str) -> Iterator[LoadedEvent]:
        yield self._event("click", path=path, target_text=label, target_tag=tag, hierarchy=hierarchy)

    def _event(self, kind: str, properties: dict[str, Any] | None = None, **columns: str) -> LoadedEvent:
        self.count += 1
        self.time += timedelta(seconds=self.rng.expovariate(1 / 25))
        values = {**self.context, **columns}
        return LoadedEvent(
            self.user_id, self.identity, self.time, self.count, self.session, kind,
            tuple(values.get(name) for name in LOADED_COLUMNS), properties or {}, 0,
        )  # fmt: skip
