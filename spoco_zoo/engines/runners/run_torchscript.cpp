// Run a TorchScript file in the libtorch that this is linked with: MODEL INPUT.npy PREFIX.
// Writes PREFIX0.npy, PREFIX1.npy ... and prints one line of JSON; without arguments, only the
// version.
#include <torch/script.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using Kinds = std::vector<std::pair<std::string, at::ScalarType>>;
const Kinds kKinds = {
    {"<f4", at::kFloat}, {"<f8", at::kDouble}, {"<f2", at::kHalf}, {"<i8", at::kLong},
    {"<i4", at::kInt},   {"<i2", at::kShort},  {"|i1", at::kChar}, {"|u1", at::kByte},
    {"|b1", at::kBool},
};
const std::string kMagic = "\x93NUMPY";

// What stands in a NumPy header between `before` and `after`.
std::string between(const std::string& text, const std::string& before, const std::string& after) {
  const auto start = text.find(before);
  const auto end = start == std::string::npos ? start : text.find(after, start + before.size());
  if (end == std::string::npos) throw std::runtime_error("the input has a damaged NPY header");
  return text.substr(start + before.size(), end - start - before.size());
}

at::Tensor read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (bytes.size() < 12 || bytes.compare(0, 6, kMagic) != 0)
    throw std::runtime_error("the input is no NPY file");
  const auto byte = [&](size_t at) { return static_cast<size_t>(static_cast<uint8_t>(bytes[at])); };
  size_t length = byte(8) | byte(9) << 8, start = 10;
  if (byte(6) > 1) {
    length |= byte(10) << 16 | byte(11) << 24;
    start = 12;
  }
  const std::string header = bytes.substr(start, length);
  const std::string descr = between(header, "'descr': '", "'");
  if (between(header, "'fortran_order': ", ",") != "False")
    throw std::runtime_error("the array is not in C order");
  std::stringstream words(between(header, "'shape': (", ")"));
  std::vector<int64_t> shape;
  for (std::string word; std::getline(words, word, ',');)
    if (word.find_first_of("0123456789") != std::string::npos) shape.push_back(std::stoll(word));
  for (const auto& [name, type] : kKinds) {
    if (name != descr) continue;
    auto tensor = at::empty(shape, type);
    const std::string content = bytes.substr(start + length);
    if (content.size() != tensor.nbytes()) throw std::runtime_error("the input is cut off");
    std::copy(content.begin(), content.end(), static_cast<char*>(tensor.data_ptr()));
    return tensor;
  }
  throw std::runtime_error("numbers of type " + descr + " are not known to this runner");
}

void write_npy(const std::string& path, const at::Tensor& output) {
  const auto tensor = output.contiguous();
  const auto kind = std::find_if(kKinds.begin(), kKinds.end(), [&](const auto& candidate) {
    return candidate.second == tensor.scalar_type();
  });
  if (kind == kKinds.end())
    throw std::runtime_error(std::string("an output of type ") + at::toString(tensor.scalar_type()) +
                             " is not known to this runner");
  std::string header = "{'descr': '" + kind->first + "', 'fortran_order': False, 'shape': (";
  for (const auto size : tensor.sizes()) header += std::to_string(size) + ", ";
  header += "), }";
  header.append(63 - (header.size() + kMagic.size() + 4) % 64, ' ').push_back('\n');
  std::ofstream file(path, std::ios::binary);
  file << kMagic << '\1' << '\0' << static_cast<char>(header.size() & 255)
       << static_cast<char>(header.size() >> 8) << header;
  file.write(static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  file.flush();
  if (!file) throw std::runtime_error("an output cannot be written: the disk may be full");
}

std::vector<at::Tensor> as_list(const c10::IValue& value) {
  if (value.isTensor()) return {value.toTensor()};
  if (value.isTensorList()) return value.toTensorVector();
  if (!value.isTuple()) throw std::runtime_error("the network gives back no tensors");
  std::vector<at::Tensor> outputs;
  for (const auto& element : value.toTupleRef().elements()) outputs.push_back(element.toTensor());
  return outputs;
}

std::string quote(const std::string& text) {
  std::string quoted = "\"";
  for (const unsigned char letter : text) {
    char code[8];
    if (letter >= ' ' && letter != '"' && letter != '\\' && letter < 127) {
      quoted += static_cast<char>(letter);
    } else {
      std::snprintf(code, sizeof code, "\\u%04x", letter);
      quoted += code;
    }
  }
  return quoted + '"';
}

}  // namespace

int main(int count, char** words) {
  std::string told = std::string("{\"engine\": \"") + TORCH_VERSION + '"', stage = "open";
  bool failed = false;
  if (count == 4) {
    try {
      auto module = torch::jit::load(words[1], at::kCPU);
      module.eval();
      stage = "run";
      torch::NoGradGuard no_gradients;
      const auto start = std::chrono::steady_clock::now();
      const auto outputs = as_list(module.forward({read_npy(words[2])}));
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      std::string shapes;
      for (size_t number = 0; number < outputs.size(); number++) {
        write_npy(words[3] + std::to_string(number) + ".npy", outputs[number]);
        std::stringstream shape;
        shape << outputs[number].sizes();
        shapes += (number ? ", " : "") + shape.str();
      }
      told += ", \"seconds\": " + std::to_string(seconds.count()) + ", \"outputs\": [" + shapes + "]";
    } catch (const c10::Error& error) {
      told += ", \"error\": " + quote(error.what_without_backtrace());
      failed = true;
    } catch (const std::exception& error) {
      told += ", \"error\": " + quote(error.what());
      failed = true;
    }
    told += ", \"stage\": " + quote(stage);
  }
  std::cout << '\n' << told << '}' << std::endl;
  return failed;
}
