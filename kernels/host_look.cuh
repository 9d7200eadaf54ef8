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

constexpr int kOrders = 3, kAligned = 0x100, kAhead = 16;

inline const ArrayFields& fields(const char* array, long long head_bytes) {
  return *reinterpret_cast<const ArrayFields*>(array + head_bytes);
}

inline unsigned char layout(const ArrayFields& array) {
  return array.flags & kAligned ? 1 + 2 * (array.flags & kOrders) : 1;
}

// Where NumPy arrays lie and how they are laid out, as contiguity() of device/arrays.py says it:
// 1, plus 2 for C order, plus 4 for Fortran order; 1 if elements are not aligned; 0 for no array.
// Asking each array from Python takes twenty times as long.
extern "C" void look(const char* const* arrays, long long count, long long head_bytes,
                     void** addresses, unsigned char* layouts) {
  for (long long i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(arrays[i + kAhead] + head_bytes);
    addresses[i] = nullptr;
    layouts[i] = 0;
    if (!arrays[i]) continue;
    const ArrayFields& array = fields(arrays[i], head_bytes);
    addresses[i] = array.data;
    layouts[i] = layout(array);
  }
}

// What follows the head of a Python list: PyListObject of cpython/listobject.h.
struct ListFields {
  long long count;
  const char* const* items;
};

struct Taken {
  long long count, head_bytes;
  const char *array_type, *none;
  const unsigned char* allowed;  // layouts of each array, of which it must have a bit
  void** addresses;
  bool* present;
};

enum Retaken { kMisfits, kAlike, kOthersPresent };

// Takes the addresses of the arrays in a list, where None stands for an absent one, in place of
// those before. Says whether one is no array or not laid out as allowed, and leaves it at that; or
// whether others are present than were.
extern "C" int retake(const char* list, const Taken* taken) {
  const long long count = taken->count, head_bytes = taken->head_bytes;
  const char* const* items = reinterpret_cast<const ListFields*>(list + head_bytes)->items;
  Retaken found = kAlike;
  for (long long i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(items[i + kAhead] + head_bytes);
    const bool is_present = items[i] != taken->none;
    if (is_present != taken->present[i]) found = kOthersPresent;
    taken->present[i] = is_present;
    taken->addresses[i] = nullptr;
    if (!is_present) continue;
    // The type is the last thing in the head of an object.
    if (reinterpret_cast<const char* const*>(items[i] + head_bytes)[-1] != taken->array_type)
      return kMisfits;
    const ArrayFields& array = fields(items[i], head_bytes);
    if (!(layout(array) & taken->allowed[i])) return kMisfits;
    taken->addresses[i] = array.data;
  }
  return found;
}
