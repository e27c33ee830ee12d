"""Two tools. A worker offers them when `WORKER_TOOLS=examples.tools` names this module.

They answer from tables, so that the examples give the same answer everywhere.
"""

from typing import Annotated, Literal, TypedDict

from pydantic import Field

from worker.tools import tool


class Weather(TypedDict):
    """What the model reads of a city's weather."""

    city: str
    temperature: float
    unit: str
    sky: str


class Product(TypedDict):
    """One line of the catalogue; the price is in US dollars."""

    sku: str
    name: str
    price_usd: float
    in_stock: int


_CELSIUS = {"lisbon": (21.5, "clear"), "oslo": (4.0, "snow"), "singapore": (31.0, "showers")}

_CATALOGUE: list[Product] = [
    {"sku": "KB-1", "name": "compact keyboard", "price_usd": 49.0, "in_stock": 12},
    {"sku": "KB-2", "name": "split keyboard", "price_usd": 139.0, "in_stock": 0},
    {"sku": "MS-1", "name": "quiet mouse", "price_usd": 25.0, "in_stock": 40},
    {"sku": "HS-1", "name": "headset with microphone", "price_usd": 79.0, "in_stock": 7},
]


@tool
async def weather(
    city: Annotated[str, Field(description="Name of the city, in English", examples=["Lisbon"])],
    unit: Literal["celsius", "fahrenheit"] = "celsius",
) -> Weather:
    """Return the current weather of a city."""
    known = _CELSIUS.get(city.strip().lower())
    if known is None:
        raise LookupError(f"the weather is known for {', '.join(_CELSIUS)} only")
    degrees, sky = known
    value = degrees if unit == "celsius" else degrees * 9 / 5 + 32
    return {"city": city, "temperature": value, "unit": unit, "sky": sky}


@tool
def search_products(
    query: Annotated[str, Field(description="Words of the product's name", examples=["keyboard"])],
    max_price_usd: Annotated[float, Field(gt=0)] = 1_000.0,
    only_in_stock: bool = False,  # noqa: FBT001, FBT002 (the model passes arguments by name)
) -> list[Product]:
    """Search the product catalogue, cheapest first."""
    words = query.lower().split()
    found = [
        product
        for product in _CATALOGUE
        if all(word in product["name"] for word in words)
        and product["price_usd"] <= max_price_usd
        and (product["in_stock"] > 0 or not only_in_stock)
    ]
    return sorted(found, key=lambda product: product["price_usd"])
