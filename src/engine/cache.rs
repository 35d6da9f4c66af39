//! The keys and values of one session.

use crate::amounts::Bytes;

/// Positions of one page: small sessions stay small, and growing moves nothing (arbitrary).
pub(super) const PAGE: usize = 256;

/// Keys and values of one session in one block.
#[derive(Debug)]
pub(super) struct BlockCache {
    pub(super) keys: Pages,
    pub(super) values: Pages,
}

impl BlockCache {
    /// Room for `capacity` positions of `width` elements; nothing is allocated yet.
    pub(super) fn new(width: usize, capacity: usize) -> Self {
        Self { keys: Pages::new(width, capacity), values: Pages::new(width, capacity) }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> Bytes {
        self.keys.bytes().plus(self.values.bytes())
    }
}

/// Rows of f32 by position, allocated page by page up to a capacity.
#[derive(Debug)]
pub(super) struct Pages {
    pages: Vec<Vec<f32>>,
    width: usize,
    capacity: usize,
}

impl Pages {
    fn new(width: usize, capacity: usize) -> Self {
        Self { pages: Vec::new(), width, capacity }
    }

    /// Writes `rows` (`[n, width]`) at positions `first..first + n`, which must lie within the capacity.
    pub(super) fn write(&mut self, first: usize, rows: &[f32]) {
        for (position, row) in (first..).zip(rows.chunks_exact(self.width)) {
            while position >= self.pages.len() * PAGE {
                let room = self.capacity.saturating_sub(self.pages.len() * PAGE).min(PAGE);
                self.pages.push(vec![0.0; room * self.width]);
            }
            let start = position % PAGE * self.width;
            self.pages[position / PAGE][start..start + self.width].copy_from_slice(row);
        }
    }

    /// Calls `visit(position, row)` for the first `count` positions, ascending.
    #[inline(always)]
    pub(super) fn for_each(&self, count: usize, mut visit: impl FnMut(usize, &[f32])) {
        let mut position = 0;
        for page in &self.pages {
            for row in page.chunks_exact(self.width).take(count - position) {
                visit(position, row);
                position += 1;
            }
        }
    }

    fn bytes(&self) -> Bytes {
        self.pages.iter().map(|page| Bytes(size_of_val(page.as_slice()) as u64)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_keep_rows_in_order_and_grow_to_the_capacity_only() {
        let mut pages = Pages::new(2, PAGE + 10);
        assert_eq!(pages.bytes(), Bytes(0));

        let rows: Vec<f32> = (0..2 * (PAGE + 10)).map(|index| index as f32).collect();
        pages.write(0, &rows[..20]);
        assert_eq!(pages.bytes(), Bytes(2 * 4 * PAGE as u64));
        pages.write(10, &rows[20..]);

        let mut seen = Vec::new();
        pages.for_each(PAGE + 5, |position, row| {
            assert_eq!(seen.len(), 2 * position);
            seen.extend_from_slice(row);
        });
        assert_eq!(seen, rows[..2 * (PAGE + 5)]);
        assert_eq!(pages.bytes(), Bytes(2 * 4 * (PAGE as u64 + 10)));
    }
}
