//! Disjoint pieces of something mutable, one to a task.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::slice;

use crate::engine::pool::Pool;

/// Multiplications (or as much time in other work) below which waking other threads costs more than it saves (measured
/// roughly; not critical).
const WORTH_SHARING: usize = 1 << 16;

impl Pool {
    /// Cuts `data` into chunks of `length` elements (the last may be shorter) and does `task(number, chunk)` for each.
    ///
    /// - `work`: about how many multiplications all tasks are; little work is not shared
    ///
    /// # Panics
    /// If `length` is 0, and as [`Pool::run`].
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        length: usize,
        work: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) {
        if data.is_empty() {
            return;
        }
        let rows = [0, 1];
        let width = data.len();
        let mut grid = [Grid::new(data, width, &rows, length)];
        self.for_each_tile(&mut grid, work, |_, mut tile| task(tile.column / length, tile.row(0)));
    }

    /// Does `task(grid, tile)` for every tile of every grid.
    ///
    /// - `work`: about how many multiplications all tasks are; little work is not shared
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn for_each_tile<T: Send>(
        &self,
        grids: &mut [Grid<'_, T>],
        work: usize,
        task: impl Fn(usize, Tile<'_, T>) + Sync,
    ) {
        self.each_tile(grids, &mut [(); 0], work, |_, grid, tile| task(grid, tile));
    }

    /// Does `task(own, grid, tile)` for every tile of every grid.
    ///
    /// - `owns`: something of its own for each thread, at least [`Pool::threads`] of them
    /// - `work`: about how many multiplications all tasks are; little work is not shared
    ///
    /// # Panics
    /// If there are less `owns` than threads, and as [`Pool::run`].
    pub fn for_each_tile_with<T: Send, S: Send>(
        &self,
        owns: &mut [S],
        grids: &mut [Grid<'_, T>],
        work: usize,
        task: impl Fn(&mut S, usize, Tile<'_, T>) + Sync,
    ) {
        assert!(owns.len() >= self.threads(), "every thread has something of its own");
        self.each_tile(grids, owns, work, |own, grid, tile| {
            let Some(mut own) = own else { return };
            // SAFETY: `each_tile` gives each thread the pointer to its own element, and no thread does two tasks at a time.
            task(unsafe { own.as_mut() }, grid, tile);
        });
    }

    fn each_tile<T: Send, S: Send>(
        &self,
        grids: &mut [Grid<'_, T>],
        owns: &mut [S],
        work: usize,
        task: impl Fn(Option<NonNull<S>>, usize, Tile<'_, T>) + Sync,
    ) {
        let tasks = grids.iter().map(Grid::tiles).sum();
        let (grids, owns) = (Given(grids), Own { first: NonNull::from(&mut *owns).cast::<S>(), count: owns.len() });
        let one = |thread: usize, number: usize| {
            // SAFETY: the pool gives each number to one task only.
            if let Some((grid, tile)) = unsafe { grids.tile(number) } {
                task(owns.of(thread), grid, tile);
            }
        };
        if work < WORTH_SHARING { self.run_here(tasks, &one) } else { self.run(tasks, &one) }
    }
}

/// A row-major matrix cut into tiles, each of which one task writes.
#[derive(Debug)]
pub struct Grid<'a, T> {
    data: NonNull<T>,
    width: usize,
    rows: &'a [usize],
    columns: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<'a, T> Grid<'a, T> {
    /// Cuts `data`, `[rows, width]`.
    ///
    /// - `rows`: where tiles begin and the last ends: ascending, from 0 to the number of rows
    /// - `columns`: columns of a tile; the last of a row may have fewer
    ///
    /// # Panics
    /// If the cuts are not such.
    pub fn new(data: &'a mut [T], width: usize, rows: &'a [usize], columns: usize) -> Self {
        assert!(width > 0 && columns > 0, "a matrix and its tiles have columns");
        assert!(rows.first() == Some(&0) && rows.is_sorted(), "tiles of rows ascend from 0");
        assert!(rows.last().is_some_and(|rows| rows * width == data.len()), "tiles cover all rows");
        Self { data: NonNull::from(data).cast(), width, rows, columns, borrowed: PhantomData }
    }

    fn tiles(&self) -> usize {
        (self.rows.len() - 1) * self.width.div_ceil(self.columns)
    }
}

/// Grids while their tiles are handed out.
struct Given<'a, 'b, T>(&'a mut [Grid<'b, T>]);

// SAFETY: all that a shared one gives out is tiles, of which each is handed to one task (see `tile`), as a `&mut [T]` sent to its
// thread would be; `T` may be sent.
unsafe impl<T: Send> Sync for Given<'_, '_, T> {}

impl<T> Given<'_, '_, T> {
    /// # Safety
    /// Each number may be asked for once.
    unsafe fn tile(&self, number: usize) -> Option<(usize, Tile<'_, T>)> {
        let mut number = number;
        for (index, grid) in self.0.iter().enumerate() {
            if number < grid.tiles() {
                let across = grid.width.div_ceil(grid.columns);
                let rows = &grid.rows[number / across..];
                let column = number % across * grid.columns;
                let columns = grid.columns.min(grid.width - column);
                let (data, width) = (grid.data, grid.width);
                let tile = Tile { data, width, rows: rows[0]..rows[1], column, columns, borrowed: PhantomData };
                return Some((index, tile));
            }
            number -= grid.tiles();
        }
        None
    }
}

/// Something of its own for each thread.
struct Own<S> {
    first: NonNull<S>,
    count: usize,
}

// SAFETY: each thread uses the element of its own number only, as if it had been sent there; `S` may be sent.
unsafe impl<S: Send> Sync for Own<S> {}

impl<S> Own<S> {
    fn of(&self, thread: usize) -> Option<NonNull<S>> {
        // SAFETY: the offset stays inside the slice of `count` elements that `first` is the beginning of.
        (thread < self.count).then(|| unsafe { self.first.add(thread) })
    }
}

/// Some columns of some rows of a matrix, for one task to write.
#[derive(Debug)]
pub struct Tile<'a, T> {
    data: NonNull<T>,
    width: usize,
    rows: Range<usize>,
    column: usize,
    columns: usize,
    borrowed: PhantomData<&'a mut T>,
}

impl<T> Tile<'_, T> {
    /// The rows.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The columns.
    pub fn columns(&self) -> Range<usize> {
        self.column..self.column + self.columns
    }

    /// The tile's columns of a row, which is counted as in the whole matrix.
    ///
    /// # Panics
    /// If the tile does not have the row.
    #[inline]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "a row of the tile");
        // SAFETY: the row is one of the matrix, whose whole length the grid has checked, so the columns lie inside it. No other tile
        // has them: tiles of one grid are disjoint, and each was handed to one task. The result borrows the tile mutably.
        unsafe { slice::from_raw_parts_mut(self.data.add(row * self.width + self.column).as_ptr(), self.columns) }
    }
}
