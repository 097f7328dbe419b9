// SPDX-License-Identifier: Apache-2.0
// TensorPicture.swift - the elements of a tensor as a histogram, and its channels: which of them hold the outliers.

import QuietAttention

/// What the pictures of a tensor show, of bounded size whatever the tensor's.
struct TensorPicture {
    /// A place in the last dimension, over all places in the others.
    struct Channel {
        let index: Int
        let largest: Float
        /// Elements beyond six standard deviations from the mean of the tensor.
        let outliers: Int
    }

    /// Elements by value: equal parts of -max ... max, max the largest magnitude. Empty: there is no finite one above 0.
    let histogram: [Int]
    let channels: Int
    /// Channels with outliers.
    let outlierChannels: Int
    /// The channels with most outliers, and of equals the larger ones: at most ``mostListed``.
    let listed: [Channel]
    /// The largest magnitude of each channel, or of as many neighbours as make ``mostBars`` of all.
    let largest: [Float]

    static let bins = 61
    static let mostBars = 144
    static let mostListed = 6

    /// - Parameters:
    ///   - values: the elements, channels fastest.
    ///   - channels: the last extent; 1 of a scalar.
    ///   - statistics: of the same elements.
    init(_ values: [Float], channels: Int, _ statistics: TensorStatistics) {
        self.channels = channels
        let norm = statistics.infinityNorm
        guard norm.isFinite, norm > 0, channels > 0 else {
            (histogram, outlierChannels, listed, largest) = ([], 0, [], [])
            return
        }
        let (mean, limit) = (statistics.mean, 6 * statistics.standardDeviation)
        var histogram = [Int](repeating: 0, count: Self.bins)
        var magnitudes = [Float](repeating: 0, count: channels)
        var outliers = [Int32](repeating: 0, count: channels)
        let scale = Double(Self.bins) / (2 * norm)
        var channel = 0
        for value in values {
            let value64 = Double(value)
            histogram[min(Self.bins - 1, Int((value64 + norm) * scale))] += 1
            magnitudes[channel] = max(magnitudes[channel], abs(value))
            if abs(value64 - mean) > limit { outliers[channel] &+= 1 }
            channel += 1
            if channel == channels { channel = 0 }
        }
        self.histogram = histogram
        var listed: [Channel] = []
        var outlierChannels = 0
        for (index, count) in outliers.enumerated() where count > 0 {
            outlierChannels += 1
            listed.append(Channel(index: index, largest: magnitudes[index], outliers: Int(count)))
            if listed.count > 1024 { listed = Self.first(listed) }
        }
        self.outlierChannels = outlierChannels
        self.listed = Self.first(listed)
        let bars = min(channels, Self.mostBars)
        largest = (0..<bars).map { bar in magnitudes[bar * channels / bars..<(bar + 1) * channels / bars].max() ?? 0 }
    }

    private static func first(_ channels: [Channel]) -> [Channel] {
        Array(
            channels.sorted { ($0.outliers, $0.largest, -$0.index) > ($1.outliers, $1.largest, -$1.index) }.prefix(
                mostListed))
    }
}

/// The pictures of a tensor on the page.
struct TensorFigure {
    let tensor: MeasuredTensor
    let picture: TensorPicture
    let statistics: TensorStatistics
    let identifier: String

    var markup: Markup {
        """
        <figure class="tensor" id="\(identifier)"><figcaption><b>\(tensor.name)</b> <span>\(tensor.shape) \
        \(tensor.tensor.elementType.rawValue): largest \(short(statistics.infinityNorm)), deviation \(short(statistics.standardDeviation)), \
        excess kurtosis \(short(statistics.excessKurtosis)); \(channelText)</span></figcaption>
        <div class="figures">\(histogram)\(channels)</div></figure>
        """
    }

    private var channelText: String {
        if picture.histogram.isEmpty { return "nothing to draw" }
        if picture.outlierChannels == 0 { return "no element beyond 6 deviations" }
        let listed = picture.listed.map { "\($0.index) (\($0.outliers), up to \(short(Double($0.largest))))" }
        let rest = picture.outlierChannels - picture.listed.count
        return "channels with elements beyond 6 deviations: " + listed.joined(separator: ", ")
            + (rest > 0 ? " and \(rest) more of \(picture.channels)" : " of \(picture.channels)")
    }

    private var histogram: Markup {
        if picture.histogram.isEmpty { return "" }
        let norm = statistics.infinityNorm
        func bar(_ value: Double) -> Double { (value + norm) / (2 * norm) * Double(TensorPicture.bins) }
        let most = picture.histogram.max() ?? 0
        // Heights grow with the logarithm: a single element far out is what there is to see.
        return BarPicture(
            values: picture.histogram.map { $0 == 0 ? 0 : logarithm(1 + Double($0)) },
            labels: (short(-norm), "0", short(norm)),
            top: "most \(most) elements, heights by log",
            marks: [-6, 6].map { bar(statistics.mean + $0 * statistics.standardDeviation) },
            description:
                "Histogram of \(statistics.count) elements from \(short(-norm)) to \(short(norm)), with lines at 6 "
                + "standard deviations from the mean", width: 360
        ).markup
    }

    private var channels: Markup {
        if picture.largest.isEmpty { return "" }
        return BarPicture(
            values: picture.largest.map(Double.init), labels: ("channel 0", "", "\(picture.channels - 1)"),
            top: "largest magnitude of each channel, up to \(short(statistics.infinityNorm))",
            description: "Largest magnitude of each of \(picture.channels) channels", width: 360
        ).markup
    }
}
