// NumPy arrays, looked at by compiled code.
#pragma once

// What follows the head of every NumPy array: PyArrayObject_fields of numpy/ndarraytypes.h, which
// all compiled users of NumPy have built in, so that it cannot change beneath them.
struct ArrayFields {
  void* data;
  int dimensions;
  const void *shape, *strides, *base, *dtype;
  int flags;
};

// Where NumPy arrays lie and how they are laid out, as contiguity() of device/arrays.py says it:
// 1, plus 2 for C order, plus 4 for Fortran order; 1 if elements are not aligned; 0 for no array.
// Asking each array from Python takes twenty times as long.
extern "C" void look(const char* const* arrays, long long count, long long head_bytes,
                     void** addresses, unsigned char* layouts) {
  constexpr int kOrders = 3, kAligned = 0x100, kAhead = 16;
  for (long long i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(arrays[i + kAhead] + head_bytes);
    addresses[i] = nullptr;
    layouts[i] = 0;
    if (!arrays[i]) continue;
    const auto fields = reinterpret_cast<const ArrayFields*>(arrays[i] + head_bytes);
    addresses[i] = fields->data;
    layouts[i] = fields->flags & kAligned ? 1 + 2 * (fields->flags & kOrders) : 1;
  }
}
