"""The plan of a day's extract: the earlier extract that it builds on, the rows since, and the extracted days that are stale.

`src/extract/plan.rs` is the same plan in synclake, and says why it is right. Days are dates. Versions are those of
`sync_records`, but `written_version` returns one of `daily_state`.
"""

import datetime
import json

from synclake_log import Refused
from synclake_rows import left_by_retention

AGAIN = "run `synclake extract`"


def covers_id(day):
    return f"extract/{day}"


def extracted_id(day):
    return f"extracted/{day}"


def stale_id(day):
    return f"stale/{day}"


def days(log, prefix):
    """Returns the versions that the transaction ids `<prefix><day>` hold."""
    found = {}
    for name, version in log.ids.items():
        if name.startswith(prefix) and version >= 0:
            try:
                found[datetime.date.fromisoformat(name.removeprefix(prefix))] = version
            except ValueError:
                continue
    return found


def day_in(partition, column="event_date"):
    value = (partition or {}).get(column)
    return datetime.date.fromisoformat(value) if value else None


def removes_rows(changes, version, day):
    """Returns whether rows of days up to this one, which the version had, were removed or changed since."""
    of = (day_in(file.partition) for file in changes.removed_with_rows_of(version))
    return any(found is None or found <= day for found in of)


def written_version(log, day):
    """Returns the version of daily_state that wrote the extract of a day, if the log has it.

    It is recorded in a commit of its own. So after a job that was killed between its commits, the newest commit that says it is
    an extract of this day counts.
    """
    found = days(log, "extracted/").get(day)
    for version, actions in log.read_existing(-1 if found is None else found):
        for action in actions:
            if is_extract(action.get("commitInfo", {}).get("userMetadata"), day):
                found = version
    return found


def is_extract(metadata, day):
    try:
        return metadata is not None and json.loads(metadata).get("synclake") == f"extract {day}"
    except (ValueError, AttributeError):
        return False


def is_as_written(log, day):
    """Returns whether an extract holds the rows that it was written with."""
    written = written_version(log, day)
    touched = None if written is None else log.changed_values(written, "extract_date")
    return touched is not None and str(day) not in touched and None not in touched


class Plan:
    """What the extract of a day is computed from."""

    def __init__(self, records, daily, date):
        self.records, self.daily, self.date = records, daily, date
        self.version = records.log.version
        # A version beyond the newest belongs to another sync_records, of which this one is an older copy.
        self.extracted = {day: covers for day, covers in days(daily.log, "extract/").items() if covers <= self.version}
        self.base = max((day for day in self.extracted if day < date), default=None)
        self.changes = records.log.changes(self.extracted[self.base]) if self.base else None
        self.late = self.late_rows()
        self.stale = self.stale_days()
        base, self.why_anew = self.base, self.unusable()
        self.base = None if self.why_anew else base
        self.check_retention()

    def unusable(self):
        """Returns why the earlier extract is no base; None if it is one."""
        if self.base is None:
            return "there is no earlier extract"
        if self.changes is None:
            return "the log does not reach back to the version that the earlier extract covers"
        if removes_rows(self.changes, self.extracted[self.base], self.base):
            return "another writer removed or changed rows that the earlier extract holds"
        if not is_as_written(self.daily.log, self.base):
            return "another writer changed the earlier extract, or a job was killed before its last commit"
        return None

    def check_retention(self):
        if not left_by_retention(self.records.log):
            return
        prefix, start = "expire/pool/", datetime.date(1970, 1, 1)
        bounds = [start + datetime.timedelta(value) for name, value in self.records.log.ids.items() if name.startswith(prefix)]
        last = max(bounds) - datetime.timedelta(1)
        if self.base is None or self.base < last or self.changes.expired_new:
            raise Refused(f"the extract of {self.date} needs rows that left sync_records by retention; {AGAIN}")

    def late_rows(self):
        late = {}
        for file in self.changes.new.values() if self.changes else []:
            day = day_in(file.partition)
            if day and day <= self.base:
                late[day] = late.get(day, 0) + file.rows
        return late

    def stale_days(self):
        recorded, extracted = days(self.daily.log, "stale/"), self.extracted
        stale = {day for day, covers in extracted.items() if recorded.get(day, -1) > covers}
        earlier = {day: covers for day, covers in extracted.items() if day < self.date}
        if self.late:
            stale.update(day for day, covers in earlier.items() if day >= min(self.late) and covers < self.version)
        if self.changes:
            stale.update(day for day, covers in earlier.items() if removes_rows(self.changes, covers, day))
        later = {day: covers for day, covers in extracted.items() if day > self.date}
        changes = self.since(later)
        if changes:
            added = [(version, day_in(partition)) for version, partition in changes.files().values()]
            for day, covers in later.items():
                has_new = any(version > covers and of is not None and of <= day for version, of in added)
                if has_new or removes_rows(changes, covers, day):
                    stale.add(day)
        return sorted(stale - {self.date})

    def since(self, later):
        """Returns what changed since the oldest of some extracts, or since the newest one if the log does not reach back."""
        if not later:
            return None
        changes = self.records.log.changes(min(later.values()))
        return changes if changes is not None else self.records.log.changes(later[max(later)])
