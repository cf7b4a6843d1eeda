"""Rows that are taken apart by position have the columns in the order of the fields that they fill."""

from __future__ import annotations

from dataclasses import fields

from flota.fleet.devices import Device
from flota.fleet.executions import Execution
from flota.store.queries.devices import DEVICE_COLUMNS
from flota.store.queries.executions import EXECUTION_COLUMNS


def test_the_columns_of_a_device_are_its_fields_in_order() -> None:
    assert [column.key for column in DEVICE_COLUMNS] == [field.name for field in fields(Device)]


def test_the_columns_of_an_execution_are_its_fields_in_order() -> None:
    assert [column.key for column in EXECUTION_COLUMNS] == [field.name for field in fields(Execution)]
