// SPDX-License-Identifier: Apache-2.0
// Quiet.swift - the command line: its subcommands, and how a run ends.

import ArgumentParser
import QuietAttention
import Safetensors

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

@main
struct Quiet: ParsableCommand {
    static let version = "0.1.0"

    static let configuration = CommandConfiguration(
        commandName: "quiet",
        abstract: "Scaled dot-product attention with a sink, on the CPU.",
        discussion: """
            Computes softmax_s(scale Q K^T) V, where the sink logit s of each query head takes the weight that fits no key:
              p[j] = e^x[j] / (e^s + sum_k e^x[k])
            s = -inf is softmax, s = 0 softmax_1, s = log n softmax_n.

            Results go to standard output, diagnostics to standard error. Exit status: 0 for success, 1 for an input that \
            cannot be used, 64 for a command line that cannot.
            """,
        version: version,
        subcommands: [Attend.self, Inspect.self, Bench.self, Info.self])

    static func main() {
        prepareStandardStreams()
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch let failure as Failure {
            fail(failure.description)
        } catch let error as SafetensorsError {
            fail(error.description)
        } catch let error as AttentionError {
            fail(error.description)
        } catch {
            end(error)
        }
    }

    /// Says what is wrong with the command line, or answers a question for help or for the version.
    private static func end(_ error: Error) -> Never {
        let code = exitCode(for: error)
        guard code == .success else {
            _ = writeAll(fullMessage(for: error) + "\n", to: STDERR_FILENO)
            end(code.rawValue)
        }
        do {
            try emit(fullMessage(for: error))
            end(0)
        } catch {
            fail("\(error)")
        }
    }

    private static func fail(_ reason: String) -> Never {
        _ = writeAll("quiet: \(reason)\n", to: STDERR_FILENO)
        end(1)
    }

    private static func end(_ status: Int32) -> Never {
        #if canImport(Darwin)
            Darwin.exit(status)
        #elseif canImport(Musl)
            Musl.exit(status)
        #else
            Glibc.exit(status)
        #endif
    }
}
