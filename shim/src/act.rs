//! What is to be done between two steps, handed to the one function that makes them. As `&mut dyn FnMut` is, but without
//! a table of functions: each address in one is a relocation, which every process pays for when it starts.

use core::ffi::c_void;
use core::marker::PhantomData;

/// A borrowed closure with arguments `A` (a tuple) and answer `R`.
pub struct Act<'f, A, R> {
    closure: *mut c_void,
    call: unsafe fn(*mut c_void, A) -> R,
    borrowed: PhantomData<&'f mut ()>,
}

impl<'f, A, R> Act<'f, A, R> {
    /// Borrows it.
    #[inline(always)]
    pub fn new<F: FnMut(A) -> R>(closure: &'f mut F) -> Self {
        /// # Safety
        /// `closure` must be the address of an `F` that nobody else uses now.
        unsafe fn call<F: FnMut(A) -> R, A, R>(closure: *mut c_void, arguments: A) -> R {
            // SAFETY: as above.
            unsafe { (*closure.cast::<F>())(arguments) }
        }
        Self { closure: (&raw mut *closure).cast(), call: call::<F, A, R>, borrowed: PhantomData }
    }

    /// Does it.
    #[inline(always)]
    pub fn run(&mut self, arguments: A) -> R {
        // SAFETY: the closure is borrowed for as long as this lives, and `call` is the one for its type.
        unsafe { (self.call)(self.closure, arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_done_with_what_was_borrowed() {
        let mut sum = 0;
        let mut add = |(a, b): (i32, i32)| {
            sum += a * b;
            sum
        };
        let mut act = Act::new(&mut add);
        assert_eq!(act.run((2, 3)), 6);
        assert_eq!(act.run((1, 1)), 7);
        assert_eq!(sum, 7);
    }
}
