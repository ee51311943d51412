//! Layout of a table on a terminal: columns are narrowed until a row fits on one line; if that is not enough, columns in
//! the middle are left out.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A column is not narrowed below this width.
const WIDTH_MIN: usize = 8;
/// Characters of a ruled line beside each cell, `| ` and a space.
const RULE: usize = 3;
/// Stands for what was cut.
const CUT: char = '…';

/// What a terminal shows of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Characters of a line.
    pub columns: usize,
    /// Rows that are shown; the others are counted.
    pub rows: usize,
}

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// A column of the result, by its position, and its width.
    Column(usize, usize),
    /// Stands for columns that do not fit.
    Gap,
}

impl Slot {
    pub(super) fn width(self) -> usize {
        match self {
            Self::Column(_, width) => width,
            Self::Gap => 1,
        }
    }
}

/// Places columns of these widths on a line.
pub(super) fn layout(natural: &[usize], columns: usize) -> Vec<Slot> {
    let budget = |count: usize, gap: usize| columns.saturating_sub(1 + RULE * count + gap);
    let least = |widths: &[usize]| widths.iter().map(|width| (*width).min(WIDTH_MIN)).sum::<usize>();
    if least(natural) <= budget(natural.len(), 0) {
        let widths = narrowed(natural, budget(natural.len(), 0));
        return widths.into_iter().enumerate().map(|(column, width)| Slot::Column(column, width)).collect();
    }
    let gap = 1 + RULE;
    // The ends say most: the first columns identify a row, the last ones have its times.
    let ends = |kept: usize| (kept.div_ceil(2), natural.len() - kept / 2);
    let kept_of = |kept: usize| {
        let (left, right) = ends(kept);
        [&natural[..left], &natural[right..]].concat()
    };
    let fits = |kept: &usize| least(&kept_of(*kept)) <= budget(*kept, gap);
    let kept = (1..natural.len()).rev().find(fits).unwrap_or(1.min(natural.len()));
    let (left, right) = ends(kept);
    let widths = narrowed(&kept_of(kept), budget(kept, gap));
    let columns = (0..left).chain(right..natural.len());
    let mut slots: Vec<Slot> = columns.zip(widths).map(|(column, width)| Slot::Column(column, width)).collect();
    if right > left {
        slots.insert(left, Slot::Gap);
    }
    slots
}

/// Narrows the widest of these widths until their sum is at most `budget`, where the least width allows it.
fn narrowed(natural: &[usize], budget: usize) -> Vec<usize> {
    let capped = |cap: usize| natural.iter().map(move |width| (*width).min(cap));
    let widest = natural.iter().copied().max().unwrap_or(0);
    let fits = |cap: &usize| capped(*cap).sum::<usize>() <= budget;
    // The sum grows with the cap, so a binary search finds the largest cap that fits.
    let (mut low, mut high) = (WIDTH_MIN.min(widest), widest);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(&middle) { low = middle } else { high = middle - 1 }
    }
    let mut left = budget.saturating_sub(capped(low).sum());
    let widen = |(width, natural): (usize, &usize)| {
        let more = usize::from(width < *natural && left > 0);
        left -= more;
        width + more
    };
    capped(low).zip(natural).map(widen).collect()
}

/// Cuts a text that is wider than `width`.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let fits = |c: &char| {
        let wide = c.width().unwrap_or(0);
        let fits = wide <= left;
        left = left.saturating_sub(wide);
        fits
    };
    text.chars().take_while(fits).chain([CUT]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(slots: &[Slot]) -> usize {
        1 + slots.iter().map(|slot| slot.width() + RULE).sum::<usize>()
    }

    #[test]
    fn narrow_columns_keep_their_width() {
        assert_eq!(layout(&[4, 5], 80), [Slot::Column(0, 4), Slot::Column(1, 5)]);
        assert_eq!(layout(&[4, 200], 40), [Slot::Column(0, 4), Slot::Column(1, 29)]);
        assert_eq!(layout(&[], 80), []);
    }

    #[test]
    fn columns_in_the_middle_are_left_out() {
        let slots = layout(&[20; 20], 80);
        assert!(line(&slots) <= 80, "{slots:?}");
        assert_eq!(slots.iter().filter(|slot| **slot == Slot::Gap).count(), 1);
        assert!(slots.first().is_some_and(|slot| matches!(slot, Slot::Column(0, _))));
        assert!(slots.last().is_some_and(|slot| matches!(slot, Slot::Column(19, _))));
    }

    #[test]
    fn a_cut_text_is_as_wide_as_its_column() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("東東東東", 6), "東東…");
    }

    proptest! {
        #[test]
        fn a_row_fits_on_a_line(natural in prop::collection::vec(0usize..300, 0..40), columns in 16usize..300) {
            let slots = layout(&natural, columns);
            prop_assert!(line(&slots) <= columns, "{slots:?}");
            let shown = slots.iter().filter_map(|slot| match slot { Slot::Column(at, width) => Some((at, width)), Slot::Gap => None });
            for (at, width) in shown.clone() {
                prop_assert!(*width <= natural[*at]);
            }
            prop_assert!(shown.map(|(at, _)| at).is_sorted());
        }
    }
}
