// Where tensors of another library lie, asked of that library's own C functions.
#pragma once

// What DLPack says of a tensor: DLTensor of dlpack.h, version 1.
struct Described {
  void* data;
  int device_type, device;
  int rank;
  unsigned char code, bits;
  unsigned short lanes;
  const long long *shape, *strides;
  unsigned long long offset;

  const char* address() const { return static_cast<const char*>(data) + offset; }
};

// Two numbers that differ only by chance if axes, dtype or device do.
inline unsigned long long print(const Described& tensor) {
  unsigned long long hash = 0x9E3779B97F4A7C15;
  const auto mix = [&hash](unsigned long long value) {
    hash = (hash ^ value) * 0xD6E8FEB86659FD93;
    hash ^= hash >> 32;
  };
  mix(tensor.device_type * 256ull + tensor.code);
  mix(tensor.device * 256ull + tensor.bits);
  mix(tensor.rank * 65536ull + tensor.lanes);
  for (int axis = 0; axis < tensor.rank; ++axis) {
    mix(tensor.shape[axis]);
    mix(tensor.strides[axis]);
  }
  return hash;
}

inline int kind(const Described& tensor) { return tensor.code * 256 + tensor.bits; }

// Whether a gradient that is to be of some kind can be walked beside its parameter, element by
// element of their memory.
inline bool are_alike(const Described& param, const Described& grad, int wanted) {
  bool alike = param.device_type == grad.device_type && param.device == grad.device &&
               kind(grad) == wanted && param.lanes == grad.lanes && param.rank == grad.rank &&
               reinterpret_cast<unsigned long long>(grad.address()) * 8 % grad.bits == 0;
  for (int axis = 0; alike && axis < param.rank; ++axis) {
    const bool is_walked = param.shape[axis] != 1;
    alike = param.shape[axis] == grad.shape[axis] &&
            !(is_walked && param.strides[axis] != grad.strides[axis]);
  }
  return alike;
}

// Where tensors were found, and how: of each parameter its address and the print of the rest; of each
// gradient its address, and 0 if there is none, 3 if it is laid out as its parameter, else 1. `kinds`
// is what gradients are to be made of: that of their parameters if it is 0.
struct Found {
  const void** places;
  unsigned long long* prints;
  const void** addresses;
  unsigned char* layouts;
  const unsigned short* kinds;
};

// Looks at parameters and their gradients, and says what differs from what was found before: 1 if a
// parameter does, plus 2 if the address of a gradient does, plus 4 if the layout of one does; -1 for
// an error of Python. `describe` is
// dltensor_from_py_object_no_sync of the library that they are of, `none` stands for no gradient.
extern "C" long long look_at_tensors(int (*describe)(void*, Described*), void* const* params,
                                     void* const* grads, const void* none, long long count,
                                     const Found* before, Found* now) {
  Described param, grad;
  bool is_other = false, is_elsewhere = false, is_otherwise = false;
  for (long long i = 0; i < count; ++i) {
    if (describe(params[i], &param)) return -1;
    now->places[i] = param.address();
    now->prints[i] = print(param);
    now->addresses[i] = nullptr;
    now->layouts[i] = 0;
    if (grads[i] != none) {
      if (describe(grads[i], &grad)) return -1;
      now->addresses[i] = grad.address();
      now->layouts[i] = are_alike(param, grad, now->kinds[i] ? now->kinds[i] : kind(param)) ? 3 : 1;
    }
    is_other |= now->places[i] != before->places[i] || now->prints[i] != before->prints[i];
    is_elsewhere |= now->addresses[i] != before->addresses[i];
    is_otherwise |= now->layouts[i] != before->layouts[i];
  }
  return is_other + 2 * is_elsewhere + 4 * is_otherwise;
}
