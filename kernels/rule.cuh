// What stands around every update rule, and what rules share. README.md has the contract of a rule.
#pragma once

// What the frame does ahead of a rule: maximize and weight decay.
template <typename T>
struct Frame {
  T sign;    // −1 to follow the gradient upwards, else 1
  T l2;      // λ of L2 decay, or 0
  T shrink;  // 1 − ηλ of decoupled decay, or 1

  __device__ __forceinline__ void operator()(T& param, T& g) const {
    g = sign * g;
    if (l2 != 0) g = g + l2 * param;  // no decay leaves −0 and infinities alone
    param = shrink * param;
  }
};

// The scalars of tensors that step alike.
template <class Rule, typename T>
struct Row {
  Frame<T> frame;
  Rule rule;
  T steps;  // taken before this one: the bits of an unsigned

  __device__ __forceinline__ unsigned count() const {
    unsigned bits;
    memcpy(&bits, &steps, sizeof(bits));
    return bits;
  }
};

// What the gradients of a step amount to; lucid_gpu/execution/cuda_outcomes.py has the same members.
struct Outcome {
  double factor;         // of every gradient
  double norm;           // of all of them
  long long nonfinite;   // elements that are infinite or NaN
  long long judged;      // steps so far, with this one
  long long first_skip;  // which of them was the first to be skipped, from 1; 0 for none
  float single_factor;  // rounded once
  float scale;
  int skips;    // steps skipped so far
  int skipped;  // whether this one is

  template <typename T>
  __device__ __forceinline__ T factor_of() const {
    if constexpr (sizeof(T) == sizeof(float))
      return single_factor;
    else
      return factor;
  }
};

// What is added up: of the chunks of a page, of the pages of a tensor, or of the tensors.
struct Node {
  int begin, end;  // the numbers of what it is the sum of
  int awaited;     // how many of those are ever there
  int parent;      // what it is a part of, or −1
};

// Sums as a tree, whose leaves are chunks; folding.cuh adds them up.
struct Folding {
  double* sums;       // of each node: chunks, pages, tensors, and perhaps of all
  long long* counts;  // of each node, or null
  const Node* nodes;
  unsigned* arrived;  // how many of its parts each node has; 0 between launches
  long long stride;   // from the sums of one kind to those of the next
  long long first;    // the number of the chunk of the first block
};

// What a functor reads and writes of what it is given; a phase of a rule leaves some of it alone.
template <class Rule> constexpr bool kReadsGrad = true;
template <class Rule> constexpr bool kWritesParam = true;
template <class Rule> constexpr bool kReadsSlots = true;
template <class Rule> constexpr bool kWritesSlots = true;

// Neighbouring elements of one tensor.
struct Chunk {
  long long start;
  int tensor;
  int count;
};

template <int arrays>
struct Tensor {
  void* array[arrays];  // the parameter, the slots in use, and what holds its exact value with it
  long long first;      // the number of its first element, if it is a part of a parameter
  int variant;          // which of the kernel's rules
  unsigned stream;      // of random bits
};

// The larger of two, and NaN if either is: fmax would hide it.
template <typename T>
__device__ __forceinline__ T maximum(T a, T b) {
  return a > b || a != a ? a : b;
}

// The smaller of two, and NaN if either is.
template <typename T>
__device__ __forceinline__ T minimum(T a, T b) {
  return a < b || a != a ? a : b;
}

// 1, −1 or 0, and NaN of NaN.
template <typename T>
__device__ __forceinline__ T sign(T a) {
  return a > 0 ? T(1) : a < 0 ? T(-1) : a == 0 ? T(0) : a;
}
